package gateway

import (
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/gateway/config"
	"github.com/yggate/yggate/store"
	"github.com/yggate/yggate/transports"
)

func peerAt(state federation.State, node string) *federation.Peer {
	return &federation.Peer{
		ID: federation.GridID(node), State: state,
		Descriptor: &federation.Descriptor{Nodes: []federation.Node{{ID: "n", Addrs: []string{"ygg:" + node}}}},
	}
}

func at(node string) transports.Addr { return transports.Addr{Net: "ygg", Node: node} }

// An invite that names a peering of the configuration, with other options, does not take
// it away when nobody accepts it.
func TestInviteLeavesConfiguredPeerings(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), store.Options{Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	const uri = "tls://gateway.example:4443"
	g := &gateway{log: slog.New(slog.DiscardHandler), meshKey: key, store: st}
	g.conf.Store(&config.Config{Mesh: config.Mesh{Peers: []string{uri + "?priority=1"}}})
	m, err := newMesh(g, func() {})
	if err != nil {
		t.Fatal(err)
	}
	const other = "tls://other.example:4443"
	if err := m.try(t.Context(), []string{uri, uri + "?password=x", other, other + "?priority=2"}); err != nil {
		t.Fatal(err)
	}
	learnt := m.learnt
	if len(learnt) != 1 || !strings.HasPrefix(learnt[0], other) {
		t.Errorf("learnt %q", learnt)
	}
	for range 20 {
		if err := m.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(m.learnt, learnt) {
			t.Fatalf("learnt %q, and then %q", learnt, m.learnt)
		}
	}
	for uri := range m.tried { // nobody accepts it
		m.tried[uri] = time.Now().Add(-time.Second)
	}
	if err := m.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.node.RemovePeer(other); err == nil {
		t.Error("the peering of the invite is still there")
	}
	if err := m.node.RemovePeer(uri); err != nil {
		t.Errorf("the configured peering is gone: %v", err)
	}
}

// Nodes of peers always get in, few strangers do, and a stranger that got in can
// come back without using up what the next one needs.
func TestDoor(t *testing.T) {
	d := newDoor()
	d.know(federation.NewSnapshot([]*federation.Peer{
		peerAt(federation.StateActive, "friend"), peerAt(federation.StatePaused, "paused"),
		peerAt(federation.StateBlocked, "blocked"), peerAt(federation.StateRemoved, "removed"),
	}, nil, nil))
	in := 0
	for i := range 1000 {
		if d.admit(at(fmt.Sprintf("stranger%d", i))) {
			in++
		}
	}
	// The bucket refills while this runs, so only its order is certain.
	if in < strangerBurst || in > 4*strangerBurst {
		t.Errorf("%d of 1000 strangers were let in, want about %d", in, strangerBurst)
	}
	for range 1000 {
		if !d.admit(at("friend")) || !d.admit(at("paused")) {
			t.Fatal("the node of a peer was turned away")
		}
		if !d.admit(at("stranger0")) {
			t.Fatal("a stranger that was let in may not open a second stream")
		}
	}
	if _, ok := (*d.known.Load())["blocked"]; ok {
		t.Error("the node of a blocked peer counts as known")
	}
	if _, ok := (*d.known.Load())["removed"]; ok {
		t.Error("the node of a removed peer counts as known")
	}
}

// The memory for strangers is bounded, and those whose time is over make room.
func TestDoorForgets(t *testing.T) {
	d := newDoor()
	d.limit.SetLimit(1e9)
	d.limit.SetBurst(1e9)
	for i := range 2 * maxStrangers {
		d.admit(at(fmt.Sprint(i)))
	}
	if n := len(d.strangers); n != maxStrangers {
		t.Errorf("%d strangers are remembered, want %d", n, maxStrangers)
	}
	if d.admit(at("new")) {
		t.Error("a stranger more than there is room for was let in")
	}
	for node := range d.strangers {
		d.strangers[node] = time.Now().Add(-time.Second)
	}
	if !d.admit(at("new")) || len(d.strangers) != 1 {
		t.Errorf("%d strangers are remembered after their time", len(d.strangers))
	}
}
