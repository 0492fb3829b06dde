package xmpp

import "sync/atomic"

// account settles a batch of the local server when nothing that happens to the
// gateway can lose one of its stanzas without a word. Each part of the batch that
// is not there yet holds it open.
type account struct {
	open    atomic.Int64
	settled func()
}

// newAccount returns an account that is held open once.
func newAccount(settled func()) *account {
	c := &account{settled: settled}
	c.open.Store(1)
	return c
}

func (c *account) hold() { c.open.Add(1) }

// release takes back one hold. The last one settles the batch.
func (c *account) release() {
	if c.open.Add(-1) == 0 {
		c.settled()
	}
}
