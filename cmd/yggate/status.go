package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/transports"
)

var cmdStatus = command{
	name: "status", args: "[--wait TIME [--up PEER]...] [FLAGS]",
	short: "show how the running gateway is",
	long: `
Shows peers and what waits for them, the store, mesh peerings, streams with the
local XMPP server, peers' Matrix servers, the MQTT broker and what needs you. REACHED
is when your homeserver last spoke to one because the gateway had it do so. FROM IT are
messages of the broker's that are not on disk yet, TO IT those that it has not
acknowledged. With --wait it first waits until the gateway is ready to federate, which
its store has to be as well, and every peer named with --up is up; it exits 1 when they
are not in time.
`,
	run: runStatus,
}

func runStatus(ctx context.Context, sh *shell, c *command, args []string) error {
	f := newFlags(sh, c).withJSON()
	wait := f.Duration("wait", 0, "wait up to `TIME` for the gateway and the peers of --up")
	var up list
	f.Var(&up, "up", "a `PEER` that must be up; may be given several times")
	if _, err := f.parse(args, 0, 0); err != nil {
		return err
	}
	cl, err := f.client(sh)
	if err != nil {
		return err
	}
	st, err := awaitStatus(ctx, cl, *wait, up)
	if st.Grid == "" {
		return err
	}
	if f.json {
		return errors.Join(printJSON(sh.out, st), err)
	}
	return errors.Join(tellStatus(sh, st), err)
}

// answerTime is how long an answer that is under way when the time of --wait is over
// may still take.
const answerTime = 5 * time.Second

// awaitStatus asks until the gateway is ready and the named peers are up. The
// status it returns is the newest one, also beside an error.
func awaitStatus(ctx context.Context, cl *admin.Client, wait time.Duration, up []string) (admin.Status, error) {
	deadline := time.Now().Add(wait)
	if wait > 0 { // a gateway that hangs is not ready either
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(answerTime))
		defer cancel()
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := cl.Status(ctx)
		if err == nil {
			err = missing(st, up)
		}
		if err == nil && wait > 0 && !st.Edge {
			err = errors.New("the gateway is still starting, or on standby")
		}
		if err == nil && wait > 0 && st.Store.State != "ok" {
			err = fmt.Errorf("the store is %s: %s", st.Store.State, st.Store.Fix)
		}
		if err == nil || time.Now().After(deadline) {
			return st, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return st, ctx.Err()
		}
	}
}

func missing(st admin.Status, up []string) error {
	for _, name := range up {
		var found *admin.Peer
		for i := range st.Peers {
			if st.Peers[i].Name == name {
				found = &st.Peers[i]
			}
		}
		switch {
		case found == nil:
			return fmt.Errorf("there is no peer %q", name)
		case !found.Up && found.LastError != "":
			return fmt.Errorf("peer %s is not up: %s", name, found.LastError)
		case !found.Up:
			return fmt.Errorf("peer %s is not up", name)
		}
	}
	return nil
}

func tellStatus(sh *shell, st admin.Status) error {
	w := sh.out
	fmt.Fprintf(w, "%s   grid %s   yggate %s   up %s   %s", st.Name, federation.GridID(st.Grid).Short(), st.Version, short(time.Since(st.Started)), st.Role)
	if st.Epoch > 0 {
		fmt.Fprintf(w, ", epoch %d", st.Epoch)
	}
	fmt.Fprintln(w)
	fmt.Fprintf(w, "store %s\n", storeLine(st.Store))
	for _, warn := range st.Warnings {
		fmt.Fprintf(w, "! %s\n", warn)
	}
	fmt.Fprintln(w)
	if len(st.Peers) == 0 {
		fmt.Fprintln(w, "No peers yet. Next: yggate invite --name NAME, or yggate accept STRING")
	} else if err := table(w, []string{"PEER", "STATE", "LINK", "HEARD", "WAITS", "DOMAINS", "GRID"}, peerRows(st.Peers)); err != nil {
		return err
	}
	for _, p := range st.Peers {
		if !p.Up && p.LastError != "" && p.State == "active" {
			fmt.Fprintf(w, "! %s: %s\n", p.Name, p.LastError)
		}
	}
	if err := section(w, []string{"MESH PEERING", "DIR", "STATE", "UPTIME"}, peeringRows(st.Transports)); err != nil {
		return err
	}
	var rows [][]string
	for _, s := range st.Streams {
		rows = append(rows, []string{s.From + " -> " + s.To, s.Dir, strings.TrimSpace(s.State + " " + s.LastError)})
	}
	if err := section(w, []string{"XMPP STREAM", "DIR", "STATE"}, rows); err != nil {
		return err
	}
	if err := section(w, []string{"MATRIX SERVER", "PEER", "REACHED", "KEYS", ""}, matrixRows(st.Matrix)); err != nil {
		return err
	}
	if err := section(w, []string{"MQTT BROKER", "STATE", "FROM IT", "TO IT"}, brokerRows(st.MQTT)); err != nil {
		return err
	}
	rows = nil
	for _, l := range st.Leaves {
		rows = append(rows, []string{l.Address, short(time.Until(l.Expires))})
	}
	if err := section(w, []string{"CERTIFICATE OF", "ENDS IN"}, rows); err != nil {
		return err
	}
	rows = nil
	for _, d := range st.Conflicts {
		rows = append(rows, []string{d.Domain, d.Peer, assignCommand(d)})
	}
	return section(w, []string{"CONFLICT", "CLAIMED BY", "DECIDE WITH"}, rows)
}

// matrixRows is a row for each server name of a peer that is known.
func matrixRows(m *admin.Matrix) [][]string {
	if m == nil {
		return nil
	}
	type server struct{ peer, reached, keys, note string }
	servers := map[string]*server{}
	of := func(name, peer string) *server {
		if servers[name] == nil {
			servers[name] = &server{peer: peer, reached: "no", keys: "none yet"}
		}
		return servers[name]
	}
	for _, k := range m.Keys {
		s := of(k.Server, k.Peer)
		if len(k.Keys) > 0 {
			s.keys = strings.Join(slices.Sorted(maps.Keys(k.Keys)), " ")
		}
		s.note = k.Problem
		if !k.Changed.IsZero() {
			s.note = fmt.Sprintf("its keys changed %s ago, before: %s", short(time.Since(k.Changed)), strings.Join(slices.Sorted(maps.Keys(k.Before)), " "))
		}
	}
	for _, wake := range m.Wakes {
		s := of(wake.Server, wake.Peer)
		if !wake.Reached.IsZero() {
			s.reached = short(time.Since(wake.Reached)) + " ago"
		}
		if wake.Problem != "" {
			s.note = wake.Problem
		}
	}
	var rows [][]string
	for _, name := range slices.Sorted(maps.Keys(servers)) {
		s := servers[name]
		rows = append(rows, []string{name, s.peer, s.reached, s.keys, s.note})
	}
	return rows
}

// brokerRows is the one row of the broker.
func brokerRows(m *admin.MQTT) [][]string {
	if m == nil {
		return nil
	}
	state := "down"
	if m.Connected {
		state = "up " + short(time.Since(m.Since)) + ", MQTT " + m.Version
	}
	return [][]string{{m.Broker, state, fmt.Sprintf("%d unacknowledged", m.Unacked), fmt.Sprintf("%d under way, %d waiting", m.InFlight, m.Waiting)}}
}

// storeLine is how the database is; what to do stands in the warnings.
func storeLine(s admin.Store) string {
	line := fmt.Sprintf("%s   %s and %s of log", s.State, bytesText(s.Bytes), bytesText(s.WALBytes))
	if s.State != "ok" {
		line += fmt.Sprintf("   since %s: %s", s.Since.Local().Format(time.DateTime), s.Error)
	}
	if s.Checking {
		line += "   being checked"
	}
	return line
}

func peeringRows(all []transports.Status) [][]string {
	var rows [][]string
	for _, t := range all {
		for _, p := range t.Peerings {
			state := "down " + p.LastError
			if p.Up {
				state = "up " + short(p.Latency)
			}
			dir := "out"
			if p.Inbound {
				dir = "in"
			}
			rows = append(rows, []string{p.URI, dir, strings.TrimSpace(state), short(p.Uptime)})
		}
	}
	return rows
}

func section(w interface{ Write([]byte) (int, error) }, heading []string, rows [][]string) error {
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	return table(w, heading, rows)
}
