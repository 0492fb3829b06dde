package gateway

import (
	"context"
	"runtime/debug"
	gometrics "runtime/metrics"
	"time"
)

// What a gateway allocates while it starts, pairs or works stays with the process
// until much more has been allocated, which on a quiet one takes hours. So once
// it is quiet the memory is given back to the system.
const (
	trimEvery = 10 * time.Second
	// trimQuiet is the most that is allocated in that time by hellos and upkeep of
	// some dozens of peers, in bytes.
	trimQuiet = 4 << 20
	// trimWorth is how much must have been allocated since the last time.
	trimWorth = 16 << 20
)

// trimmer decides when it is time to give memory back.
type trimmer struct {
	last, trimmed uint64 // bytes allocated by the last look, and by the last time
}

// due says so, given how much has been allocated since the process began.
func (t *trimmer) due(allocated uint64) bool {
	quiet := allocated-t.last < trimQuiet
	t.last = allocated
	if !quiet || allocated-t.trimmed < trimWorth {
		return false
	}
	t.trimmed = allocated
	return true
}

// trim gives memory back when the process is quiet, until ctx is done.
func (g *gateway) trim(ctx context.Context) error {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var t trimmer
	sample := []gometrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		gometrics.Read(sample)
		if t.due(sample[0].Value.Uint64()) {
			debug.FreeOSMemory()
		}
	}
}
