package replica

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/blockrepl/blockrepl/blockrepl/wire"
	"github.com/blockrepl/blockrepl/journal/record"
)

// The scripts in testdata step a cluster and show what each command brings about,
// in words: one script for each rule of mastership. A script is blocks of commands,
// "----", and what the servers did:
//
//	cluster N [continue]      N servers a, b, …; first
//	start a b                 they start, with links to all that run
//	kill a                    its process ends
//	cut a b, link a b         the link between two servers
//	freeze a, thaw a          its journal's fsyncs take long, and no longer
//	fsync a                   one of those ends
//	drop TYPE to a, deliver   messages of a type are lost on their way to a
//	pass 1s                   time passes
//	open a c1 NAME [TOKEN]    client NAME connects to a: connection c1
//	write c1 w1, close c1     a write through it; the connection ends
//	read a r1                 a read waits for its turn
//	promote a [dry-run] [old-master-dead] [accept-loss]
//	forget a b [force]        at a, forget b
//	resolve a, resize a N, stop a, init-start a, init a
//	set a [suspend] [continue] [keep N]
//	forge a b ack EPOCH N [bad-sum] [other-incarnation]   as a, to b
//	forge a b beat EPOCH LAST COMMIT
//	space a N                 so many bytes are free
//	lose a N                  its journal, stopped, ends with number N
//	spoil a N…                records of its journal cannot be read, and nobody has them
//	replace a                 its data directory, stopped, is replaced
//	status, journal a         for people
//
// "quietly COMMAND" shows nothing. Heartbeats and greetings are never shown.
// go test ./blockrepl/replica -run TestScripts -rewrite writes what happened into
// the scripts: read the difference before it is committed.
var rewrite = flag.Bool("rewrite", false, "write what happens into the scripts")

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 11 {
		t.Fatalf("%d scripts, %v; want one for each of 11 rules", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { runScript(t, file) })
	}
}

// runScript plays the blocks of a file.
func runScript(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t: t}
	var out strings.Builder
	for _, block := range strings.SplitAfter(string(text), "\n\n") {
		commands, want, ok := strings.Cut(block, "----\n")
		if !ok {
			out.WriteString(block)
			continue
		}
		s.shown.Reset()
		for _, line := range strings.Split(strings.TrimSpace(commands), "\n") {
			if line != "" && !strings.HasPrefix(line, "#") {
				s.command(line)
			}
		}
		got := s.shown.String()
		fmt.Fprintf(&out, "%s----\n%s\n", commands, got)
		if got != strings.TrimRight(want, "\n")+"\n" && strings.TrimSpace(got+want) != "" && !*rewrite {
			t.Errorf("%s:\n%s---- got\n%s---- want\n%s", file, commands, got, want)
		}
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(strings.TrimRight(out.String(), "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// script is a cluster and the names that a script gave.
type script struct {
	t     *testing.T
	c     *cluster
	shown strings.Builder
	quiet bool
	conns map[string]scriptConn
	ops   map[*Op]string
	reads map[uint64]string
	drops []drop
	hards map[*node]Hard // as last shown
	ids   uint64
}

type scriptConn struct {
	n  *node
	id uint64
}

// drop loses messages of a type on their way to a server.
type drop struct {
	what string
	to   record.ServerID
}

// sumsAndIDs are header sums and incarnations: what they are tells nobody anything.
var sumsAndIDs = regexp.MustCompile(`\b([0-9a-f]{32}|[0-9a-f]{16})\b`)

func (s *script) say(format string, args ...any) {
	if !s.quiet {
		s.shown.WriteString(sumsAndIDs.ReplaceAllString(fmt.Sprintf(format+"\n", args...), "#"))
	}
}

func (s *script) node(id string) *node { return s.c.node(id) }

// command carries out one line.
func (s *script) command(line string) {
	words := strings.Fields(line)
	if s.quiet = words[0] == "quietly"; s.quiet {
		words = words[1:]
	}
	args := words[1:]
	arg := func(i int) string {
		if i >= len(args) {
			s.t.Fatalf("%q lacks a word", line)
		}
		return args[i]
	}
	has := func(word string) bool { return slices.Contains(args, word) }
	switch words[0] {
	case "cluster":
		policy := wire.Suspend
		if has("continue") {
			policy = wire.Continue
		}
		s.begin(int(s.number(arg(0))), policy)
	case "start":
		s.c.start(args...)
	case "kill":
		s.c.kill(arg(0))
	case "cut":
		s.c.unlink(s.node(arg(0)), s.node(arg(1)))
	case "link":
		s.c.link(s.node(arg(0)), s.node(arg(1)))
	case "freeze":
		s.node(arg(0)).frozen = true
	case "thaw":
		s.node(arg(0)).frozen = false
		s.fsync(s.node(arg(0)))
	case "fsync":
		s.fsync(s.node(arg(0)))
	case "drop":
		s.drops = append(s.drops, drop{arg(0), s.node(arg(2)).id})
	case "deliver":
		s.drops = nil
	case "pass":
		d, err := time.ParseDuration(arg(0))
		if err != nil {
			s.t.Fatal(err)
		}
		s.c.pass(d)
	case "open":
		token := int64(0)
		if len(args) > 3 {
			token = s.number(arg(3))
		}
		n := s.node(arg(0))
		s.conns[arg(1)] = scriptConn{n, n.open(arg(2), uint64(token))}
	case "close":
		k := s.conns[arg(0)]
		k.n.step(Gone{k.id})
	case "write":
		k := s.conns[arg(0)]
		op := &Op{Conn: k.id, Rec: draftWrite(0, arg(1))}
		s.ops[op] = arg(1)
		k.n.step(Submit{[]*Op{op}})
	case "read":
		s.ids++
		s.reads[s.ids] = arg(1)
		s.node(arg(0)).step(Read{s.ids})
	case "space":
		s.node(arg(0)).step(Space{Free: s.number(arg(1))})
	case "lose":
		n := s.node(arg(0))
		n.log = n.log[:record.Seq(s.number(arg(1)))-n.base.Seq]
	case "spoil":
		n := s.node(arg(0))
		for i := 1; i < len(args); i++ {
			n.bad = append(n.bad, record.Seq(s.number(arg(i))))
		}
	case "replace":
		n := s.node(arg(0))
		n.log, n.base, n.hard, n.table, n.memory = nil, record.Pos{}, Hard{}, Table{}, nil
		n.cfg.Incarnation[15]++
		delete(s.hards, n)
	case "forge":
		s.forge(s.node(arg(0)), s.node(arg(1)), args[2:])
	case "status":
		s.status()
	case "journal":
		s.journal(s.node(arg(0)))
	default:
		s.ask(s.node(arg(0)), words[0], args[1:], has)
	}
	s.c.run()
}

func (s *script) number(word string) int64 {
	n, err := strconv.ParseInt(word, 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// ask gives an operator's command.
func (s *script) ask(n *node, what string, args []string, has func(string) bool) {
	s.ids++
	id := 1<<20 + s.ids
	switch what {
	case "promote":
		n.step(Promote{ID: id, DryRun: has("dry-run"), OldMasterDead: has("old-master-dead"), AcceptLoss: has("accept-loss")})
	case "forget":
		n.step(Forget{ID: id, Server: s.node(args[0]).id, Force: has("force")})
	case "resolve":
		n.step(Resolve{ID: id})
	case "resize":
		n.step(Resize{ID: id, Size: s.number(args[0])})
	case "set":
		ev := SetOptions{ID: id}
		if has("suspend") {
			ev.OnDegraded = wire.Suspend
		} else if has("continue") {
			ev.OnDegraded = wire.Continue
		}
		if i := slices.Index(args, "keep"); i >= 0 {
			ev.Keep = s.number(args[i+1])
		}
		n.step(ev)
	case "stop":
		n.step(Stop{ID: id, Handover: true})
	case "init-start":
		n.step(InitStart{ID: id})
	case "init":
		n.step(Init{ID: id})
	default:
		s.t.Fatalf("unknown command %q", what)
	}
}

func (s *script) begin(n int, policy wire.OnDegraded) {
	connID = 0
	s.c = newCluster(s.t, n, policy)
	s.conns, s.ops, s.reads, s.hards = map[string]scriptConn{}, map[*Op]string{}, map[uint64]string{}, map[*node]Hard{}
	s.c.show = s.show
	s.c.mangle = func(to record.ServerID, m wire.Message) []wire.Message {
		for _, d := range s.drops {
			if d.to == to && d.what == typeName(m) {
				return nil
			}
		}
		return []wire.Message{m}
	}
}

// fsync makes durable what waits for it.
func (s *script) fsync(n *node) {
	waiting := n.waiting
	n.waiting = nil
	for _, id := range waiting {
		n.step(Stored{id})
	}
}

// forge sends b an acknowledgement or a heartbeat in a's name.
func (s *script) forge(a, b *node, args []string) {
	e, err := record.ParseEpoch(args[1])
	if err != nil {
		s.t.Fatal(err)
	}
	q := record.Seq(s.number(args[2]))
	if args[0] == "beat" {
		b.step(Received{a.id, b.links[a.id], &wire.Heartbeat{Epoch: e, Last: q, Commit: record.Seq(s.number(args[3]))}})
		return
	}
	ack := &wire.Ack{Epoch: e, Incarnation: a.cfg.Incarnation, Durable: record.Pos{Seq: q}}
	ack.Durable.Sum, _ = b.r.sums.at(q)
	if slices.Contains(args, "bad-sum") {
		ack.Durable.Sum++
	}
	if slices.Contains(args, "other-incarnation") {
		ack.Incarnation[3]++
	}
	b.step(Received{a.id, b.links[a.id], ack})
}
