// Command bench measures blockrepl beside what else a user could choose, in one run on one machine, and writes down what
// it found.
//
//	go run ./bench [-quick] [-jobs REGEX] [-peers REGEX] [-rounds N] [-json FILE] [-out DIR]
//	BENCH_DIR=/mnt/disk go run ./bench      on a given file system instead of memory
//	go run ./bench -from FILE               tables and plot again from a JSON file
//
// It promises figures that can be compared: all peers are real processes behind loopback TCP, hold the same data on the
// same file system, stand filled and idle while another is measured, and are asked in turn, job by job, in several rounds
// whose order rotates. Every ratio is between medians of the same run. It does not promise absolute figures: those are
// the machine's.
//
// The path of a figure: place.go (the file system) → peers.go, cluster.go (the servers) → jobs.go, fio.go, floor.go,
// fs.go, away.go, scale.go (the loads) → measure.go (what a load cost) → result.go (the JSON) → targets.go, table.go,
// svg.go, report.go (what people read).
//
// One goroutine does it all; processes it starts are stopped before it ends, also on Ctrl-C.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// options are the command line.
type options struct {
	quick       bool
	jobs, peers *regexp.Regexp
	rounds      int
	seconds     float64 // one fio run
	sizeMiB     int64   // of the volume
	json, out   string
	from        string
	binary      string // of blockrepl; "" = build it
	profile     string // directory for CPU profiles; "" = none
}

func main() {
	o, err := parseFlags(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseFlags(args []string) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("bench", flag.ExitOnError)
	fs.BoolVar(&o.quick, "quick", false, "the jobs of the target table only, short: about 3 minutes")
	jobs := fs.String("jobs", "", "only jobs that match `REGEX`: "+jobNames())
	peers := fs.String("peers", "", "only peers that match `REGEX`: "+peerNames())
	fs.IntVar(&o.rounds, "rounds", 0, "rounds (default 3, quick 2)")
	fs.Float64Var(&o.seconds, "seconds", 0, "seconds of one load (default 3, quick 1)")
	fs.Int64Var(&o.sizeMiB, "size", 0, "MiB of the volume (default 512, quick 256)")
	fs.StringVar(&o.json, "json", "", "write the samples to `FILE` (default OUT/results.json)")
	fs.StringVar(&o.out, "out", "bench/out", "write results.json, RESULTS.md and results.svg into `DIR`")
	fs.StringVar(&o.from, "from", "", "measure nothing, read the samples of `FILE`")
	fs.StringVar(&o.binary, "binary", "", "measure this blockrepl `PROGRAM` (default: build ./cmd/blockrepl)")
	fs.StringVar(&o.profile, "profile", "", "write a CPU profile of every blockrepl server and job into `DIR`")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("%q: no arguments are wanted, see -help", fs.Arg(0))
	}
	var err error
	if o.jobs, err = regexp.Compile(*jobs); err != nil {
		return nil, fmt.Errorf("-jobs: %w", err)
	}
	if o.peers, err = regexp.Compile(*peers); err != nil {
		return nil, fmt.Errorf("-peers: %w", err)
	}
	o.fillIn()
	return o, nil
}

// fillIn sets what was not given.
func (o *options) fillIn() {
	rounds, seconds, size := 3, 3.0, int64(512)
	if o.quick {
		rounds, seconds, size = 2, 1.0, 256
	}
	if o.rounds == 0 {
		o.rounds = rounds
	}
	if o.seconds == 0 {
		o.seconds = seconds
	}
	if o.sizeMiB == 0 {
		o.sizeMiB = size
	}
	if o.json == "" {
		o.json = filepath.Join(o.out, "results.json")
	}
}

// command is how the same is measured again: without what is of this machine.
func (o *options) command() string {
	words := "go run ./bench"
	if o.quick {
		words += " -quick"
	}
	for _, f := range []struct{ name, text string }{{"jobs", o.jobs.String()}, {"peers", o.peers.String()}} {
		if f.text != "" {
			words += fmt.Sprintf(" -%s '%s'", f.name, f.text)
		}
	}
	return words + fmt.Sprintf(" -rounds %d -seconds %g -size %d", o.rounds, o.seconds, o.sizeMiB)
}

func (o *options) runtime() time.Duration { return time.Duration(o.seconds * float64(time.Second)) }

func run(ctx context.Context, o *options) error {
	if o.from != "" {
		res, err := readResult(o.from)
		if err != nil {
			return err
		}
		return report(o, res)
	}
	if err := installTools(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	res, err := measureAll(ctx, o)
	if res != nil && len(res.Samples)+len(res.Specials) > 0 {
		// What was measured before an error or Ctrl-C is worth keeping.
		if werr := res.write(o.json); werr != nil {
			return werr
		}
		if rerr := report(o, res); rerr != nil {
			return rerr
		}
	}
	return err
}

// measureAll makes the place, starts the peers and runs every load.
func measureAll(ctx context.Context, o *options) (res *Result, err error) {
	pl, err := newPlace(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = firstError(err, pl.close()) }()
	binary, err := blockreplBinary(ctx, o, pl)
	if err != nil {
		return nil, err
	}
	b := &bench{o: o, place: pl, binary: binary, res: newResult(ctx, o, pl)}
	defer b.stopPeers()
	for _, step := range []func(context.Context) error{b.runRounds, b.runTrees, b.runAway, b.runScale} {
		if err := step(ctx); err != nil {
			return b.res, err
		}
	}
	return b.res, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
