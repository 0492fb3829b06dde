package federation

import (
	"bytes"
	"database/sql"
	"errors"
	"testing"
	"time"
)

func TestOwnDescriptorView(t *testing.T) {
	w, bob, eve := newWorld(t), newGrid(t), newGrid(t)
	w.introduce(t, "bob", bob.says(t))
	w.introduce(t, "eve", eve.says(t))
	view := func(g *grid) (*Descriptor, []byte) {
		t.Helper()
		raw, err := w.OwnDescriptor(t.Context(), g.ID())
		must(t, err)
		d, err := ParseDescriptor(raw, w.now)
		must(t, err)
		return d, raw
	}
	w.allow["eve"] = nil
	must(t, w.Reload(t.Context()))
	d, raw := view(bob)
	if d.XMPP == nil || d.XMPP.Domains[0] != "home.grid" || d.Matrix == nil || d.MQTT != nil || d.Name != "home" || len(d.Nodes) != 1 {
		t.Errorf("bob is told %+v", d)
	}
	if e, _ := view(eve); e.XMPP != nil || e.Matrix != nil || e.MQTT != nil {
		t.Errorf("eve is told %+v", e)
	}
	if _, again := view(bob); !bytes.Equal(raw, again) {
		t.Error("the same state, other bytes")
	}
	w.allow["eve"] = map[Protocol]bool{XMPP: true}
	must(t, w.Reload(t.Context()))
	after, _ := view(eve)
	if after.XMPP == nil || after.Seq <= d.Seq {
		t.Errorf("eve is told %+v after her policy changed", after)
	}
	w.now = w.now.Add(ownRefresh)
	if aged, _ := view(bob); aged.Seq <= after.Seq || aged.Issued != w.now.Unix() {
		t.Errorf("not issued anew after %s: seq %d", ownRefresh, aged.Seq)
	}
	if _, err := w.OwnDescriptor(t.Context(), newGrid(t).ID()); !errors.Is(err, ErrUnknownGrid) {
		t.Errorf("a stranger: %v", err)
	}
}

func TestOwnSeqNeverGoesBack(t *testing.T) {
	w := newWorld(t)
	seq := func() uint64 {
		raw, err := w.OwnDescriptorAs(t.Context(), "x")
		must(t, err)
		d, err := ParseDescriptor(raw, w.now)
		must(t, err)
		return d.Seq
	}
	before := seq()
	w.open(t)
	if after := seq(); after <= before {
		t.Errorf("restart: %d after %d", after, before)
	}
	// A backup from before is restored: its numbers are behind what peers saw.
	must(t, w.store.Write(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`DELETE FROM own_descriptor`)
		return err
	}))
	w.now = w.now.Add(time.Hour)
	w.open(t)
	if after := seq(); after <= before+2 {
		t.Errorf("restore: %d, and peers saw more than %d", after, before)
	}
}

// What was issued by a clock that was ahead would be refused by every peer.
func TestOwnDescriptorAfterTheClockWasSetBack(t *testing.T) {
	w := newWorld(t)
	own := func() ([]byte, *Descriptor) {
		t.Helper()
		raw, err := w.OwnDescriptorAs(t.Context(), "x")
		must(t, err)
		d, err := ParseDescriptor(raw, w.now)
		must(t, err)
		return raw, d
	}
	const year = 365 * 24 * time.Hour
	w.now = w.now.Add(year)
	w.open(t)
	_, ahead := own()
	w.now = w.now.Add(-year)
	raw, d := own()
	if d.Seq <= ahead.Seq {
		t.Errorf("seq %d after %d", d.Seq, ahead.Seq)
	}
	if again, _ := own(); !bytes.Equal(again, raw) {
		t.Error("issued anew without need")
	}
}
