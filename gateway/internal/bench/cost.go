package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// costs is what the load of one way takes from each of the processes that carry
// it: where the rate is bound by the processor, this says by whose work.
type costs struct {
	procs    []*peertest.Process
	before   []spent
	sum      []spent
	messages int
}

// spent is what a process has used since it began.
type spent struct {
	cpu           time.Duration
	reads, writes int64
}

func spentBy(p *peertest.Process) (s spent, err error) {
	if s.cpu, err = p.CPU(); err == nil {
		s.reads, s.writes, err = p.Calls()
	}
	return s, err
}

func (c *costs) begin() error {
	c.before = c.before[:0]
	for _, p := range c.procs {
		s, err := spentBy(p)
		if err != nil {
			return err
		}
		c.before = append(c.before, s)
	}
	return nil
}

func (c *costs) end(messages int) error {
	if c.sum == nil {
		c.sum = make([]spent, len(c.procs))
	}
	for i, p := range c.procs {
		s, err := spentBy(p)
		if err != nil {
			return err
		}
		c.sum[i].cpu += s.cpu - c.before[i].cpu
		c.sum[i].reads += s.reads - c.before[i].reads
		c.sum[i].writes += s.writes - c.before[i].writes
	}
	c.messages += messages
	return nil
}

// report prints one line.
func (c *costs) report(out io.Writer, title string) {
	n := float64(c.messages)
	var all []string
	for i, p := range c.procs {
		s := &c.sum[i]
		all = append(all, fmt.Sprintf("%s %.0f us, %.2f reads, %.2f writes", p.Name, float64(s.cpu.Microseconds())/n, float64(s.reads)/n, float64(s.writes)/n))
	}
	fmt.Fprintf(out, "%s  for a message: %s\n", title, strings.Join(all, "; "))
}
