package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/urfave/cli/v2"
)

// Comes from: file, then flags and environment. Does: decode, override,
// complete. Goes to: config_check.go.

// maxConfigBytes bounds the file: the largest sensible one, seven servers and
// hundreds of volumes, has some ten KiB. A larger one is refused.
const maxConfigBytes = 1 << 20

// loadConfig reads the file of --config (none: flags and environment alone),
// lays flags over it, completes and checks it. The error lists all that is wrong.
func loadConfig(c *cli.Context) (*Config, error) {
	if err := misspelt(os.Environ(), c.Command.Flags); err != nil {
		return nil, err
	}
	cfg := defaultConfig()
	if path := c.String("config"); path != "" {
		if err := cfg.readFile(path); err != nil {
			return nil, err
		}
	}
	if err := cfg.override(c); err != nil {
		return nil, err
	}
	cfg.complete()
	if problems := cfg.Check(); len(problems) > 0 {
		f := &failure{code: exitUsage, err: cfg.locate(problems)}
		if cfg.path == "" {
			f.next = "name a file with --config, or give what is missing as an option"
		}
		return nil, f
	}
	return cfg, nil
}

// misspelt refuses a variable that is a slip away from one of the flags': passed over,
// BLOCKREPL_NBDTLS=require would serve without TLS. Others may be anybody's; Kubernetes
// sets BLOCKREPL_PORT and the like for a service of that name.
func misspelt(environ []string, flags []cli.Flag) error {
	known := map[string]bool{}
	for _, f := range flags {
		if d, ok := f.(cli.DocGenerationFlag); ok {
			for _, name := range d.GetEnvVars() {
				known[strings.TrimPrefix(name, envPrefix)] = true
			}
		}
	}
	for _, e := range environ {
		name, ours := strings.CutPrefix(e, envPrefix)
		name, value, _ := strings.Cut(name, "=")
		if !ours || value == "" || known[name] {
			continue
		}
		for _, near := range slices.Sorted(maps.Keys(known)) {
			if editDistance(name, near) <= min(2, len(near)/3) {
				return usagef("unknown variable %s%s in the environment (did you mean %s%s?)", envPrefix, name, envPrefix, near)
			}
		}
	}
	return nil
}

// locate joins problems, a line each, with the file's name before each.
func (c *Config) locate(problems []error) error {
	located := make([]error, len(problems))
	for i, p := range problems {
		located[i] = fmt.Errorf("%s: %w", c.source(), p)
	}
	return errors.Join(located...)
}

func (c *Config) readFile(path string) error {
	text, err := readConfigFile(path)
	if err != nil {
		return usagef("config: %w", err)
	}
	c.path = path
	return c.parse(text)
}

func readConfigFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1)) // a device has no size to ask for
	if err == nil && len(text) > maxConfigBytes {
		err = fmt.Errorf("%s: larger than %d bytes, which no configuration is", path, maxConfigBytes)
	}
	return string(text), err
}

// parse decodes TOML over c. Unknown keys are refused, with line and nearest key.
func (c *Config) parse(text string) error {
	where := c.source()
	meta, err := toml.Decode(text, c)
	if perr, ok := errors.AsType[toml.ParseError](err); ok {
		// The library's text repeats the position; Message alone lacks the key
		// when a value does not fit its type.
		message := perr.Message
		lines := strings.Split(text, "\n")
		switch {
		case unquoted.MatchString(lines[min(max(perr.Position.Line, 1), len(lines))-1]):
			message = `a number with a unit stands in quotes, as "2s" or "1GiB"`
		case perr.LastKey != "":
			message = fmt.Sprintf("key %q: %s", perr.LastKey, message)
		}
		return usagef("%s:%d: %s", where, perr.Position.Line, message)
	}
	if err != nil {
		return usagef("%s: %w", where, err)
	}
	var problems []error
	seen := map[string]bool{}
	for _, key := range meta.Undecoded() {
		if seen[key.String()] || len(key) > 1 && seen[toml.Key(key[:len(key)-1]).String()] {
			continue // a whole unknown table is named once
		}
		seen[key.String()] = true
		known := knownKeys(reflect.TypeFor[Config](), key[:len(key)-1])
		problems = append(problems, fmt.Errorf("%s:%d: unknown key %q%s",
			where, lineOf(text, key), key.String(), didYouMean(key[len(key)-1], known)))
	}
	if len(problems) > 0 {
		return &failure{code: exitUsage, err: errors.Join(problems...)}
	}
	return nil
}

// knownKeys lists the keys of the table at path.
func knownKeys(t reflect.Type, path toml.Key) []string {
	for t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var keys []string
	for f := range t.Fields() {
		name := f.Tag.Get("toml")
		if name == "" {
			continue
		}
		if len(path) > 0 && name == path[0] {
			return knownKeys(f.Type, path[1:])
		}
		keys = append(keys, name)
	}
	if len(path) > 0 {
		return nil
	}
	return keys
}

var (
	tableLine = regexp.MustCompile(`^\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$`)
	unquoted  = regexp.MustCompile(`=\s*[0-9.]+\s*[A-Za-z]+\s*(?:#.*)?$`)
	keyLine   = regexp.MustCompile(`^\s*([A-Za-z0-9_."'-]+)\s*=`)
)

// lineOf finds the line of a key, from 1; the decoder does not tell. A key in
// an inline table is found by its name alone; 0 when it is not found at all.
func lineOf(text string, key toml.Key) int {
	table, byName := "", 0
	last := key[len(key)-1]
	inline := regexp.MustCompile(`(^|[\s{,])"?` + regexp.QuoteMeta(last) + `"?\s*=`)
	for i, line := range strings.Split(text, "\n") {
		if m := tableLine.FindStringSubmatch(line); m != nil {
			table = strings.ReplaceAll(m[1], `"`, "") + "."
			if table == key.String()+"." {
				return i + 1
			}
			continue
		}
		if m := keyLine.FindStringSubmatch(line); m != nil && table+strings.Trim(m[1], `"'`) == key.String() {
			return i + 1
		}
		if byName == 0 && inline.MatchString(line) {
			byName = i + 1
		}
	}
	return byName
}
