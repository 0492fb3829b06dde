package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/gateway/admin"
)

var cmdPeer = command{
	name: "peer", args: "{list | show NAME | approve NAME | pause NAME | resume NAME | block NAME | remove NAME} [FLAGS]",
	short: "list peers and decide about them",
	long: `
list      every grid that was ever a peer
show      all that is known of one, and what the configuration allows it
approve   let a pending peer link and hold its domains
pause     let nothing cross until resume; its domains stay its own
resume    end a pause
block     refuse the grid by its key, for good
remove    forget the peer; it may be invited again
`,
	run: runPeer,
}

var peerVerbs = []string{"approve", "pause", "resume", "block", "remove"}

func runPeer(ctx context.Context, sh *shell, c *command, args []string) error {
	f := newFlags(sh, c).withJSON()
	rest, err := f.parse(args, 1, 2)
	if err != nil {
		return err
	}
	verb, name := rest[0], ""
	if len(rest) > 1 {
		name = rest[1]
	}
	known := verb == "show" || slices.Contains(peerVerbs, verb)
	switch {
	case verb == "list" && name != "":
		return badUsage("list takes no name; did you mean show %s?", name)
	case verb != "list" && !known:
		return badUsage("%q is none of list, show, %s", verb, strings.Join(peerVerbs, ", "))
	case known && name == "":
		return badUsage("%s needs the name of a peer (`yggate peer list` has them)", verb)
	}
	cl, err := f.client(sh)
	if err != nil {
		return err
	}
	switch verb {
	case "list":
		peers, err := cl.Peers(ctx)
		if err != nil {
			return err
		}
		return listPeers(sh, f, peers)
	case "show":
		p, err := cl.Peer(ctx, name)
		if err != nil {
			return err
		}
		return showPeer(sh, f, p)
	}
	done, err := cl.Decide(ctx, name, verb)
	if err != nil {
		return err
	}
	return tellDone(sh, f, done)
}

func listPeers(sh *shell, f *flags, peers []admin.Peer) error {
	if f.json {
		return printJSON(sh.out, peers)
	}
	if len(peers) == 0 {
		fmt.Fprintln(sh.out, "No peers yet. Next: yggate invite --name NAME, or yggate accept STRING")
		return nil
	}
	return table(sh.out, []string{"NAME", "STATE", "LINK", "HEARD", "WAITS", "DOMAINS", "GRID"}, peerRows(peers))
}

func peerRows(peers []admin.Peer) [][]string {
	var rows [][]string
	for _, p := range peers {
		var domains []string
		for _, d := range p.Domains {
			if d.Status == "active" {
				domains = append(domains, d.Domain)
			} else {
				domains = append(domains, d.Domain+" ("+d.Status+")")
			}
		}
		domains = slices.Compact(domains) // one may be held for several protocols
		rows = append(rows, []string{p.Name, p.State, linkWord(p), ago(p.LastHeard), waits(p), strings.Join(domains, " "), federation.GridID(p.Grid).Short()})
	}
	return rows
}

// waits tells how much waits for a peer, and since when.
func waits(p admin.Peer) string {
	var items int64
	var oldest time.Time
	for _, l := range p.Lanes {
		if l.Dir != "out" || l.Items == 0 {
			continue
		}
		items += l.Items
		if oldest.IsZero() || l.Oldest.Before(oldest) {
			oldest = l.Oldest
		}
	}
	switch {
	case items == 0:
		return ""
	case oldest.IsZero():
		return strconv.FormatInt(items, 10)
	}
	return fmt.Sprintf("%d, %s", items, short(time.Since(oldest)))
}

// linkWord is up or down, and how.
func linkWord(p admin.Peer) string {
	switch {
	case p.Up:
		w := "up " + p.Transport
		if p.RTT > 0 {
			w += " " + short(p.RTT)
		}
		return w
	case p.Link != "":
		return p.Link
	}
	return "down"
}

func showPeer(sh *shell, f *flags, p admin.Peer) error {
	if f.json {
		return printJSON(sh.out, p)
	}
	w := sh.out
	fmt.Fprintf(w, "%s   %s", p.Name, p.State)
	if p.Title != "" {
		fmt.Fprintf(w, "   calls itself %q", p.Title)
	}
	fmt.Fprintf(w, "\n  fingerprint  %s\n  link         %s, heard %s\n", p.Fingerprint, linkWord(p), ago(p.LastHeard))
	if p.Address != "" {
		fmt.Fprintf(w, "  address      %s\n", p.Address)
	}
	if p.LastError != "" {
		fmt.Fprintf(w, "  last error   %s\n", p.LastError)
	}
	if much := waits(p); much != "" {
		fmt.Fprintf(w, "  waits        %s (yggate outbox list %s)\n", much, p.Name)
	}
	allow := strings.Join(p.Allow, ", ")
	if allow == "" {
		allow = "nothing (see peer_defaults and peers in the configuration)"
	}
	fmt.Fprintf(w, "  allowed      %s\n", allow)
	for _, line := range matrixPolicy(p.Matrix) {
		fmt.Fprintf(w, "  matrix       %s\n", line)
	}
	for _, line := range mqttPolicy(p.MQTT) {
		fmt.Fprintf(w, "  mqtt         %s\n", line)
	}
	fmt.Fprintf(w, "  peer since   %s\n", p.Created.Local().Format("2006-01-02 15:04"))
	if p.Stale {
		fmt.Fprintln(w, "  stale        its descriptor is past its date; it still counts")
	}
	for _, d := range p.Domains {
		fmt.Fprintf(w, "  domain       %s %s: %s\n", d.Protocol, d.Domain, d.Status)
	}
	for _, n := range p.Nodes {
		fmt.Fprintf(w, "  node         %s\n", n)
	}
	return nil
}

// matrixPolicy is what the configuration says beside that Matrix is allowed.
func matrixPolicy(m *admin.MatrixPolicy) (lines []string) {
	if m == nil {
		return nil
	}
	if len(m.Servers) > 0 {
		lines = append(lines, "no servers but "+strings.Join(m.Servers, ", "))
	}
	if len(m.DenyServers) > 0 {
		lines = append(lines, "not the servers "+strings.Join(m.DenyServers, ", "))
	}
	if len(m.DenyRooms) > 0 {
		lines = append(lines, "not the rooms "+strings.Join(m.DenyRooms, ", "))
	}
	if m.Custody {
		lines = append(lines, "transactions for it wait on disk here (custody)")
	}
	return lines
}

// mqttPolicy is what crosses to a peer and from it.
func mqttPolicy(m *admin.MQTTPolicy) (lines []string) {
	if m == nil {
		return nil
	}
	rule := func(way string, r admin.MQTTRule) {
		line := way + " " + r.Filter
		if r.As != "" {
			line += " as " + r.As
		}
		line += fmt.Sprintf(", QoS %d at most", r.QoS)
		if !r.Retain {
			line += ", not retained"
		}
		if r.Transit {
			line += ", transit"
		}
		lines = append(lines, line)
	}
	for _, r := range m.Exports {
		rule("export", r)
	}
	for _, r := range m.Imports {
		rule("import", r)
	}
	if len(lines) == 0 {
		return []string{"no export and no import: nothing crosses"}
	}
	line := "overflow " + m.Overflow
	if m.Rate > 0 {
		line += fmt.Sprintf(", %g messages a second at most", m.Rate)
	}
	if m.TTL > 0 {
		line += ", waits for " + short(m.TTL) + " at most"
	}
	return append(lines, line)
}

// tellDone says what was done and what comes next.
func tellDone(sh *shell, f *flags, d admin.Done) error {
	if f.json {
		return printJSON(sh.out, d)
	}
	fmt.Fprintln(sh.out, d.Done)
	for _, m := range d.More {
		fmt.Fprintln(sh.out, "  "+m)
	}
	if d.Next != "" {
		fmt.Fprintln(sh.out, "Next: "+d.Next)
	}
	return nil
}
