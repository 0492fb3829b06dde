package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// media compares downloads of one size: from a Dendrite that first has to get it
// from another, directly and through the gateways; through two gateways with
// nothing but a file server behind; and over a bare link. Each takes its turn.
func (m *matrixBench) media(ctx context.Context, bare *bareGateways, link *bareLink) error {
	size := m.o.media << 20
	for _, g := range m.gateways {
		if err := g.ResetPeak(); err != nil {
			return err
		}
	}
	subjects := []*transfer{
		{name: "Dendrites, direct", run: func(ctx context.Context) (time.Duration, time.Duration, error) { return m.direct.download(ctx, size) }},
		{name: "Dendrites, gateways", run: func(ctx context.Context) (time.Duration, time.Duration, error) { return m.gated.download(ctx, size) }},
		{name: "file server, gateways", run: func(ctx context.Context) (time.Duration, time.Duration, error) { return bare.download(ctx, size) }},
		{name: "link alone", run: func(ctx context.Context) (time.Duration, time.Duration, error) { return link.download(ctx, size) }},
	}
	if err := inTurns(ctx, m.o, subjects); err != nil {
		return err
	}
	for _, g := range m.gateways {
		mem, err := g.Memory()
		if err != nil {
			return err
		}
		fmt.Fprintf(m.o.out, "%s: resident at most %.1f MiB while media passed\n", g.Name, float64(mem.Peak)/(1<<20))
	}
	direct, gated, files, alone := subjects[0], subjects[1], subjects[2], subjects[3]
	m.o.goals = append(m.o.goals,
		goal{what: "media through the gateways, a file server behind, to the link alone", have: files.ratio(alone), want: 0.8, unit: "x"},
		goal{what: "media through the gateways, Dendrites behind, to the link alone", have: gated.ratio(alone), want: 0.8, unit: "x"},
	)
	fmt.Fprintf(m.o.out, "media, Dendrites direct to the link alone: %.2f x; through gateways to direct: %.2f x; if all share the processors: %.0f MB/s\n",
		direct.ratio(alone), gated.ratio(direct), 1/(1/median(direct.whole)+1/median(files.whole)))
	return nil
}

// inTurns has each way carry a body, again and again, and prints what came of it.
func inTurns(ctx context.Context, o *options, subjects []*transfer) error {
	for round := range 1 + 2*o.rounds {
		for i := range subjects {
			s := subjects[(i+round)%len(subjects)]
			ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
			whole, first, err := s.run(ctx)
			cancel()
			if err != nil {
				return fmt.Errorf("media, %s: %w", s.name, err)
			}
			if round == 0 {
				continue // caches, connections, windows
			}
			s.whole = append(s.whole, float64(o.media<<20)/1e6/whole.Seconds())
			s.first = append(s.first, milliseconds(first))
		}
	}
	for _, s := range subjects {
		fmt.Fprintf(o.out, "media of %d MiB  %-21s  %4.0f MB/s (%.0f to %.0f), the first byte after %.0f ms\n",
			o.media, s.name, median(s.whole), quantile(s.whole, 0), quantile(s.whole, 1), median(s.first))
	}
	return nil
}

// transfer is one way that a large body goes.
type transfer struct {
	name  string
	run   func(context.Context) (whole, first time.Duration, err error)
	whole []float64 // MB/s of each round
	first []float64 // milliseconds until the body began
}

// ratio is the median of the ratios within each round.
func (t *transfer) ratio(to *transfer) float64 {
	var all []float64
	for i := range t.whole {
		all = append(all, t.whole[i]/to.whole[i])
	}
	return median(all)
}

// download uploads new content on the first server and times its download from the
// second, which does not have it.
func (h *homes) download(ctx context.Context, size int64) (whole, first time.Duration, err error) {
	m, err := h.users[0].UploadRandom(ctx, size)
	if err != nil {
		return 0, 0, err
	}
	begun := time.Now()
	res, err := h.users[1].Download(ctx, m.URI)
	if err != nil {
		return 0, 0, err
	}
	return drain(res.Body, begun, size)
}

// drain reads a body of a known size to its end.
func drain(body io.ReadCloser, begun time.Time, size int64) (whole, first time.Duration, err error) {
	defer body.Close()
	buf := make([]byte, 256<<10)
	for n := int64(0); ; {
		k, err := body.Read(buf)
		if n == 0 && k > 0 {
			first = time.Since(begun)
		}
		n += int64(k)
		if err == io.EOF && n == size {
			return time.Since(begun), first, nil
		}
		if err != nil {
			return 0, 0, fmt.Errorf("after %d of %d bytes: %w", n, size, err)
		}
	}
}

func getBody(ctx context.Context, do func(*http.Request) (*http.Response, error), url string, size int64) (whole, first time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, 0, err
	}
	begun := time.Now()
	res, err := do(req)
	if err != nil {
		return 0, 0, err
	}
	if res.StatusCode != http.StatusOK {
		return 0, 0, errors.Join(fmt.Errorf("GET %s: %s", url, res.Status), res.Body.Close())
	}
	return drain(res.Body, begun, size)
}
