package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/blockrepl/blockrepl/blockrepl"
)

// recordPrinter prints records as they come: aligned, or JSON, one a line.
type recordPrinter struct {
	w     io.Writer
	json  bool
	begun bool // the head of the columns is printed
}

const recordColumns = "%9s  %-7s %-7s %14s %9s  %-5s %9s  %-24s  %-8s  %-20s  %-8s  %-16s  %-16s"

func (p *recordPrinter) print(r *blockrepl.JournalRecord) error {
	if p.json {
		return printJSONLine(p.w, r)
	}
	if !p.begun {
		p.begun = true
		if err := p.line("NUMBER", "EPOCH", "KIND", "OFFSET", "LENGTH", "CODEC", "STORED", "TIME", "ORIGIN", "ATT.OP", "PAYLOAD", "SUM", "PREV"); err != nil {
			return err
		}
	}
	err := p.line(fmt.Sprint(r.Seq), r.Epoch, r.Kind, fmt.Sprint(r.Offset), fmt.Sprint(r.Length), r.Codec, fmt.Sprint(r.StoredBytes),
		r.Time.UTC().Format("2006-01-02T15:04:05.000Z"), r.Origin, fmt.Sprintf("%d.%d", r.Attachment, r.Operation), r.PayloadSum, r.Sum, r.Prev)
	if err != nil || len(r.Data) == 0 {
		return err
	}
	_, err = io.WriteString(p.w, hex.Dump(r.Data))
	return err
}

func (p *recordPrinter) line(cells ...any) error {
	_, err := io.WriteString(p.w, strings.TrimRight(fmt.Sprintf(recordColumns, cells...), " ")+"\n")
	return err
}

// printInfos prints what journals hold, a line a volume.
func printInfos(w io.Writer, asJSON bool, list []blockrepl.JournalInfo) error {
	if asJSON {
		return printJSON(w, list)
	}
	t := newTable(w)
	t.row("VOLUME", "UUID", "FIRST", "LAST", "BYTES")
	for _, v := range list {
		if v.Damage != "" {
			t.row(v.Volume, v.UUID, "?", "?", "?")
			t.line("  DAMAGED: " + strings.ReplaceAll(v.Damage, "\n", "; ") + "; " + damagedNext(v.Volume == v.UUID))
		} else {
			t.row(v.Volume, v.UUID, fmt.Sprint(v.First), fmt.Sprint(v.Last), fmt.Sprint(v.Bytes))
		}
		for _, q := range v.Quarantines {
			of := "" // not known where the first of them is damaged
			if q.Epoch != "" {
				of = " of epoch " + q.Epoch
			}
			t.line(fmt.Sprintf("  quarantine %s: records %d to %d%s are set aside", q.ID, q.First, q.Last, of))
		}
	}
	t.flush()
	return nil
}

func printVerify(w io.Writer, asJSON bool, r *blockrepl.JournalVerify) error {
	if asJSON {
		return printJSONLine(w, r)
	}
	verdict := "good"
	if r.Damaged > 0 {
		verdict = fmt.Sprintf("%d DAMAGED", r.Damaged)
	}
	kept := fmt.Sprintf("records %d to %d, %d whole, %s", r.First, r.Last, r.Records, humanBytes(r.Bytes))
	switch {
	case r.First == 0 && r.Damaged > 0: // of a log there is the first number, from 1
		kept = "records are not known"
	case r.First > r.Last:
		kept = fmt.Sprintf("no records kept, the next is %d", r.First)
	}
	_, err := fmt.Fprintf(w, "%s: %s, %d in quarantines: %s\n", r.Volume, kept, r.Quarantined, verdict)
	for _, d := range r.Damage {
		fmt.Fprintf(w, "   %s\n", d)
	}
	return err
}
