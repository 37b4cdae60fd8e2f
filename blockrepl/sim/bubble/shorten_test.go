package bubble

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

const (
	shortenMax = 2 * time.Minute // of real time
	childMax   = 40 * time.Second
)

// replay is the command that plays a seed again.
func replay(seed uint64, off string, faultsFor time.Duration) string {
	line := fmt.Sprintf("go test ./blockrepl/sim/bubble -run TestSchedules -v -seed %d", seed)
	if faultsFor > 0 {
		line += fmt.Sprintf(" -faults-for %v", faultsFor)
	}
	if off != "" {
		line += fmt.Sprintf(" -off '%s'", off)
	}
	return line
}

// shorten looks which faults a failing seed needs, and for how long. It plays the seed
// in processes of their own: a bubble that fails ends its test.
func shorten(seed uint64, met cover) string {
	ctx, cancel := context.WithTimeout(context.Background(), shortenMax)
	defer cancel()
	var off []string
	if *offFlag != "" {
		off = strings.Split(*offFlag, ",")
	}
	if !fails(ctx, seed, off, *faultsFor) {
		return fmt.Sprintf("seed %d does not fail again when it is repeated", seed)
	}
	left := false
	for _, name := range slices.Sorted(maps.Keys(met)) {
		if more := append(slices.Clone(off), name); !slices.Contains(off, name) && fails(ctx, seed, more, *faultsFor) {
			off, left = more, true
		}
	}
	ends := *faultsFor
	for d := time.Second; d <= 16*time.Second; d *= 2 {
		if (ends == 0 || d < ends) && fails(ctx, seed, off, d) {
			ends, left = d, true
			break
		}
	}
	if !left {
		return "nothing of it can be left out"
	}
	return "shortened: " + replay(seed, strings.Join(off, ","), ends)
}

// fails reports whether a seed fails with some faults switched off.
func fails(ctx context.Context, seed uint64, off []string, faultsFor time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, childMax)
	defer cancel()
	args := []string{"-test.run", "^TestSchedules$"}
	flag.Visit(func(f *flag.Flag) { // such as a rule that is broken
		switch f.Name {
		case "seed", "off", "faults-for", "shorten", "live", "trace", "length", "schedules", "from":
		default:
			if !strings.HasPrefix(f.Name, "test.") {
				args = append(args, fmt.Sprintf("-%s=%v", f.Name, f.Value))
			}
		}
	})
	args = append(args, fmt.Sprintf("-seed=%d", seed), "-off="+strings.Join(off, ","), fmt.Sprintf("-faults-for=%v", faultsFor), "-shorten=false")
	err := exec.CommandContext(ctx, os.Args[0], args...).Run()
	var exit *exec.ExitError
	return ctx.Err() == nil && errors.As(err, &exit)
}
