package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// fioArgs is the command line of a job. Every connection of it starts its own process of fio.
func (b *bench) fioArgs(j job, p *peer, out string) []string {
	args := []string{
		"--name=" + j.name, "--output-format=json", "--output=" + out,
		"--rw=" + j.rw, "--bs=" + j.bs, "--rwmixread=70", "--norandommap=1", "--randrepeat=1",
		"--time_based=1", fmt.Sprintf("--runtime=%dms", b.o.runtime().Milliseconds()),
		"--numjobs=" + strconv.Itoa(max(1, j.conns)), "--group_reporting=1",
		"--percentile_list=50:99:99.9",
		"--refill_buffers=1", // else a few buffers are written again and again, which no disk sees
	}
	if j.rw == "randrw" {
		args = append(args, "--unified_rw_reporting=1") // of the others it would mix the fsyncs in
	}
	if !j.incompressible {
		args = append(args, "--buffer_compress_percentage=50")
	}
	if p.uri == "" {
		args = append(args, "--ioengine=psync", "--filename="+p.file, "--iodepth=1", "--size="+fmt.Sprint(b.o.sizeMiB<<20))
		if j.fsync {
			args = append(args, "--sync=dsync") // pwrite and fdatasync in one call, so that the latency is that of both
		}
		return args
	}
	args = append(args, "--ioengine=nbd", "--uri="+p.uri, "--iodepth="+strconv.Itoa(j.depth))
	if j.fsync {
		args = append(args, "--fsync=1")
	}
	return args
}

// runFio runs a job and fills in what the client saw.
func (b *bench) runFio(ctx context.Context, j job, p *peer, s *Sample) error {
	out := filepath.Join(b.place.tmp, "fio.json")
	if err := command(ctx, "fio", b.fioArgs(j, p, out)...); err != nil {
		return err
	}
	text, err := os.ReadFile(out)
	if err != nil {
		return fmt.Errorf("read result of fio: %w", err)
	}
	return parseFio(text, s)
}

// fioOutput is the part of fio's JSON that is used. One of read, write and mixed has requests.
type fioOutput struct {
	Jobs []struct {
		Error   int        `json:"error"`
		Runtime float64    `json:"job_runtime"` // ms, all processes added
		UsrCPU  float64    `json:"usr_cpu"`     // percent of job_runtime
		SysCPU  float64    `json:"sys_cpu"`
		Read    fioSection `json:"read"`
		Write   fioSection `json:"write"`
		Mixed   fioSection `json:"mixed"`
		Sync    struct {
			TotalIOs int64      `json:"total_ios"`
			Latency  fioLatency `json:"lat_ns"`
		} `json:"sync"`
	} `json:"jobs"`
}

type fioSection struct {
	IOBytes     int64      `json:"io_bytes"`
	BytesPerSec float64    `json:"bw_bytes"`
	IOPS        float64    `json:"iops"`
	TotalIOs    int64      `json:"total_ios"`
	Latency     fioLatency `json:"clat_ns"`
}

type fioLatency struct {
	Percentile map[string]float64 `json:"percentile"`
}

func (l *fioLatency) micros(p string) float64 { return l.Percentile[p] / 1e3 }

// parseFio takes a sample from fio's JSON. With fsync, the latency of a request is that of the write and of the fsync
// behind it: fio reports them apart, so their percentiles are added, which is exact at the median for like loads and a
// little too much in the tail.
func parseFio(text []byte, s *Sample) error {
	var out fioOutput
	if err := json.Unmarshal(text, &out); err != nil {
		return fmt.Errorf("read result of fio: %w", err)
	}
	if len(out.Jobs) != 1 {
		return fmt.Errorf("read result of fio: %d jobs, want 1", len(out.Jobs))
	}
	j := &out.Jobs[0]
	io := &j.Mixed
	for _, section := range []*fioSection{&j.Read, &j.Write} {
		if section.TotalIOs > io.TotalIOs {
			io = section
		}
	}
	if j.Error != 0 || io.TotalIOs == 0 {
		return fmt.Errorf("fio: error %d after %d requests", j.Error, io.TotalIOs)
	}
	s.IOPS, s.BytesPerSec = io.IOPS, io.BytesPerSec
	s.ClientBytes, s.Requests = io.IOBytes, io.TotalIOs
	s.ClientCPU = j.Runtime / 1e3 * (j.UsrCPU + j.SysCPU) / 100
	for _, f := range []struct {
		to *float64
		p  string
	}{{&s.P50Micros, "50.000000"}, {&s.P99Micros, "99.000000"}, {&s.P999Micros, "99.900000"}} {
		*f.to = io.Latency.micros(f.p)
		if j.Sync.TotalIOs > 0 {
			*f.to += j.Sync.Latency.micros(f.p)
		}
	}
	return nil
}
