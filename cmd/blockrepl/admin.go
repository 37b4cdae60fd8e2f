package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/blockrepl/blockrepl/blockrepl"
	"github.com/urfave/cli/v2"
)

const (
	defaultAdmin      = Addr("127.0.0.1:10811")
	defaultConfigFile = "/etc/blockrepl/blockrepl.toml"
	// maxAnswerBytes bounds what is read of one answer: a status of 1024
	// volumes with seven peers each has some 4 MiB. Journal dumps are streamed
	// and not bounded by it.
	maxAnswerBytes = 64 << 20
)

// admin is the client of a running server's admin address.
type admin struct {
	addr Addr
	http *http.Client
}

// adminFlags are the options of every command that asks a running server.
func adminFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "admin", Aliases: []string{"a"}, EnvVars: env("ADMIN"),
			Usage: "ask the server at `ADDR`, host:port or unix:/path (default: the config's, else 127.0.0.1:10811)"},
		configFlag(),
		&durationFlag{cli.DurationFlag{Name: "timeout", Value: 30 * time.Second, Usage: "give up after `TIME`"}},
		jsonFlag(),
	}, more...)
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON for machines; its shape is stable"}
}

// newAdmin finds the address: --admin or BLOCKREPL_ADMIN, the configuration's, the default.
func newAdmin(c *cli.Context) (*admin, error) {
	addr := Addr(c.String("admin"))
	if addr == "" {
		var err error
		if addr, err = configuredAdmin(c.String("config")); err != nil {
			return nil, err
		}
	}
	if err := addr.Check(); err != nil {
		return nil, usagef("--admin: %w", err)
	}
	return adminAt(addr), nil
}

func adminAt(addr Addr) *admin {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, addr.Network(), addr.Target())
	}
	return &admin{addr: addr, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// configuredAdmin reads only the admin address: a configuration with another
// mistake must not stop the operator from asking for the status. But a file that was
// named and cannot be read must not turn a command to another server.
func configuredAdmin(path string) (Addr, error) {
	named := path != ""
	if !named {
		path = defaultConfigFile
	}
	text, err := readConfigFile(path)
	if err != nil && !named {
		return defaultAdmin, nil
	}
	var cfg struct {
		Admin Addr `toml:"admin"`
	}
	if err == nil {
		_, err = toml.Decode(text, &cfg)
	}
	if err != nil {
		return "", usagef("config %s: %w; name the server to ask with --admin", path, err)
	}
	if cfg.Admin == "" {
		return defaultAdmin, nil
	}
	return cfg.Admin, nil
}

// get asks and decodes the answer into out.
func (a *admin) get(ctx context.Context, path string, out any) error {
	body, err := a.open(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	return a.decode(path, body, out)
}

// post sends in as JSON and decodes the answer into out.
func (a *admin) post(ctx context.Context, path string, in, out any) error {
	text, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	body, err := a.open(ctx, http.MethodPost, path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	defer body.Close()
	return a.decode(path, body, out)
}

func (a *admin) decode(path string, body io.Reader, out any) error {
	text, err := io.ReadAll(io.LimitReader(body, maxAnswerBytes))
	if err != nil {
		return fmt.Errorf("read answer of %s for %s: %w", a.addr, path, err)
	}
	if out == nil || len(bytes.TrimSpace(text)) == 0 {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("answer of %s for %s is not what this version expects: %w", a.addr, path, err)
	}
	return nil
}

// open sends the request and gives the body of a good answer. Any other becomes
// a failure with the exit code that its CommandError asks for.
func (a *admin) open(ctx context.Context, method, path string, in io.Reader) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://blockrepl"+path, in)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, a.unreachable(ctx, method, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	return nil, answerFailure(resp)
}

// mayStill is said of a command whose answer was not awaited.
const mayStill = "it may still be carried out: look at the status and the server's log"

func (a *admin) unreachable(ctx context.Context, method string, err error) error {
	if uerr, ok := errors.AsType[*url.Error](err); ok {
		err = uerr.Err // without method and URL, which mean nothing to the operator
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		next := "look at the server's log, or give it more with --timeout"
		if method == http.MethodPost {
			next = mayStill + ", or give it more with --timeout"
		}
		return &failure{code: exitUnreachable, err: fmt.Errorf("no answer from %s in time", a.addr), next: next}
	}
	if ctx.Err() != nil && method == http.MethodPost {
		return &failure{code: exitError, err: errors.New("interrupted"), next: mayStill}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	next := "is `blockrepl serve` running there? name another with --admin"
	if errors.Is(err, os.ErrPermission) {
		next = "run as root or as the server's user"
	}
	return &failure{code: exitUnreachable, err: fmt.Errorf("ask %s: %w", a.addr, err), next: next}
}

// answerFailure makes the server's refusal this program's.
func answerFailure(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var answer blockrepl.CommandError
	if err := json.Unmarshal(text, &answer); err != nil || answer.Error == "" {
		return &failure{code: exitError, err: fmt.Errorf("the answer is %s: %q", resp.Status, bytes.TrimSpace(text)),
			next: "is that a server's address for commands? at its `metrics` there are none"}
	}
	f := &failure{code: exitError, err: errors.New(answer.Error), next: answer.Next}
	switch answer.Code {
	case "refused":
		f.code = exitRefused
	case "split-brain":
		f.code = exitSplitBrain
	case "bad-request":
		f.code = exitUsage
	}
	return f
}

// volumePath is the path of one volume's command.
func volumePath(name, command string) string {
	return "/v1/volumes/" + url.PathEscape(name) + "/" + command
}

// command is what promote, forget, resolve, resize, set and verify have in common:
// ask, and print the answer as JSON or by show. Ctrl-C ends the asking.
func (a *admin) command(c *cli.Context, path string, in, out any, show func(io.Writer)) error {
	ctx, stop := interruptible(c.Context)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, c.Duration("timeout"))
	defer cancel()
	if err := a.post(ctx, path, in, out); err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, out)
	}
	show(c.App.Writer)
	return nil
}

func printJSON(w io.Writer, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", text)
	return err
}

func printJSONLine(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", text)
	return err
}
