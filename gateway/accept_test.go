package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/pairing"
	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/config"
)

// inProcess runs a gateway of a grid with one XMPP domain until the test ends.
func inProcess(t *testing.T, grid, mesh string) (client *admin.Client, path string) {
	t.Helper()
	dir := t.TempDir()
	if _, _, err := federation.CreateIdentity(dir); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "yggate.yaml")
	src := fmt.Sprintf("name: %s\nstate: %s\n%sxmpp: {domains: [%s.grid], server: 127.0.0.1:5269, listen: %s}\n", grid, dir, mesh, grid, freeAddr(t))
	if err := os.WriteFile(path, []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := federation.CreateKeyFile(conf.MeshKey()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, Options{Config: conf, Log: slog.New(slog.DiscardHandler)}) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	client = admin.NewClient(admin.SocketPath(dir))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if st, err := client.Status(ctx); err == nil && st.Edge {
			return client, path
		} else if time.Now().After(deadline) {
			t.Fatalf("the gateway is not up: %+v, %v", st, err)
		}
	}
}

// Whoever pairs is given the time that he has: to find a node may take longer than one
// attempt lasts, and the far end may ask for patience.
func TestPairingIsTriedAgain(t *testing.T) {
	g := &gateway{log: slog.New(slog.DiscardHandler)}
	busy := fmt.Errorf("ask: %w", &pairing.Error{Status: http.StatusTooManyRequests})
	late := fmt.Errorf("reach: %w", context.DeadlineExceeded)
	refused := errors.New("refused")
	for name, c := range map[string]struct {
		answers []error
		want    error
	}{
		"answers at last":   {[]error{late, busy, late, nil}, nil},
		"refuses":           {[]error{late, refused, nil}, refused},
		"is never heard of": {slices.Repeat([]error{late}, 1000), context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				err := g.patiently(ctx, func() (err error) {
					err, c.answers = c.answers[0], c.answers[1:]
					return err
				})
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
			})
		})
	}
}

// An operator says yes to the domains that were shown. The other grid is asked again
// when the invite is used, and may claim others then.
func TestAcceptWhatWasShown(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	uri := "tcp://" + freeAddr(t)
	a, path := inProcess(t, "a", fmt.Sprintf("mesh: {listen: [%q], advertise: [%q]}\npeers: {bob: {allow: []}}\n", uri, uri))
	b, _ := inProcess(t, "b", "")
	inv, err := a.Invite(ctx, admin.InviteRequest{Name: "bob", Expect: []string{"b.grid"}})
	if err != nil {
		t.Fatal(err)
	}
	req := admin.AcceptRequest{Invite: inv.Invite, Name: "alice"}
	look := func(want int) {
		t.Helper()
		p, err := b.Preview(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		if req.Domains = p.Domains; len(p.Domains) != want {
			t.Fatalf("shown are %+v, want %d", p.Domains, want)
		}
	}
	look(0) // as long as bob may do nothing, he is told of nothing
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(src), "allow: []", "allow: [xmpp]", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Accept(ctx, req); err == nil || !strings.Contains(err.Error(), "xmpp a.grid now") {
		t.Errorf("a domain that was not shown: %v", err)
	}
	if peers, err := b.Peers(ctx); err != nil || len(peers) != 0 {
		t.Errorf("peers %+v, %v", peers, err)
	}
	if made, err := a.Invites(ctx); err != nil || made[0].Status != "open" {
		t.Errorf("invites %+v, %v", made, err)
	}
	look(1)
	if p, err := b.Accept(ctx, req); err != nil || p.State != "active" || len(p.Domains) != 1 || p.Domains[0].Status != "active" {
		t.Errorf("what was shown: %+v, %v", p, err)
	}
}
