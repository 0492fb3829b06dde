package s2s

import (
	"cmp"
	"slices"
	"time"
)

// The states of a stream with a local server.
const (
	StateOpen    = "open"    // stanzas flow
	StateOpening = "opening" // a handshake is under way
	StateDown    = "down"    // the last attempt failed, the next one waits
)

// StreamStatus is one stream with a local server at this moment.
type StreamStatus struct {
	Dir      string // "in": from the local server, "out": to it
	From, To string // domains
	State    string
	Since    time.Time // when it was opened; zero unless it is open
	Err      string    // why it is down
}

// opened notes when an inbound stream began to carry stanzas.
func (s *Streams) opened(in *inbound) (ended func()) {
	s.inMu.Lock()
	defer s.inMu.Unlock()
	s.in[in] = time.Now()
	return func() {
		s.inMu.Lock()
		defer s.inMu.Unlock()
		delete(s.in, in)
	}
}

// Status lists every stream that is open or should be, sorted by domains.
func (s *Streams) Status() []StreamStatus {
	var all []StreamStatus
	s.inMu.Lock()
	for in, since := range s.in {
		all = append(all, StreamStatus{Dir: dirIn, From: in.from, To: in.to, State: StateOpen, Since: since})
	}
	s.inMu.Unlock()
	s.outMu.Lock()
	for _, o := range s.out {
		if st, ok := o.status(); ok {
			all = append(all, st)
		}
	}
	s.outMu.Unlock()
	slices.SortFunc(all, func(a, b StreamStatus) int {
		return cmp.Or(cmp.Compare(a.Dir, b.Dir), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), a.Since.Compare(b.Since))
	})
	return all
}

// status is false for a stream that nobody needs now.
func (o *outbound) status() (StreamStatus, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	st := StreamStatus{Dir: dirOut, From: o.from, To: o.to}
	switch {
	case !o.open.IsZero():
		st.State, st.Since = StateOpen, o.open
	case o.running:
		st.State = StateOpening
	case o.err != nil:
		st.State, st.Err = StateDown, o.err.Error()
	default:
		return st, false
	}
	return st, true
}

// setOpen notes that the stream carries stanzas from now on, and says whether the
// attempt before had failed.
func (o *outbound) setOpen() (afterFailure bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open, afterFailure, o.err = time.Now(), o.err != nil, nil
	return afterFailure
}

// setClosed notes that it no longer does.
func (o *outbound) setClosed() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open = time.Time{}
}
