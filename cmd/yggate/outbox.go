package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/gateway/admin"
)

var cmdOutbox = command{
	name: "outbox", args: "{list [PEER] [--dead] | show ITEM | retry [PEER | dead/ID] | drop ITEM | drop PEER --all} [FLAGS]",
	short: "show what waits for peers, and give up or try again",
	long: `
list      what waits in each lane: for peers (out), and from them for your server
          (in); with PEER the items that wait for it; with --dead the newest items
          that were given up, of all peers or of one
show      one item: PEER chat/42 of the queue, or dead/7 of what was given up;
          --body prints its text as well, which is private to those who write
retry     dial now the peers whose link is down, or one of them; or put dead/7
          into the queue again, although its sender has been told that it did not
          arrive
drop      give up PEER chat/42, or with --all everything for PEER that is not on
          its way: the senders are told with an error, but for the transactions of
          a homeserver (bulk/42) and topics (mqtt/42), since Matrix and MQTT have
          none; or delete dead/7, which was given up before

Addresses are shown as the senders wrote them. Items leave the queue by
themselves: when the peer's gateway has them, or when their time is over.
`,
	run: runOutbox,
}

// outboxCall is a command line of outbox, understood.
type outboxCall struct {
	*flags
	verb, peer string
	lane       string // with seq: an item of the queue
	seq        uint64
	letter     int64 // a dead letter; 0: none

	dead, all, yes, body bool
	limit                int
}

func runOutbox(ctx context.Context, sh *shell, c *command, args []string) error {
	o := &outboxCall{flags: newFlags(sh, c).withJSON()}
	o.BoolVar(&o.dead, "dead", false, "list what was given up")
	o.BoolVar(&o.all, "all", false, "drop everything that waits for the peer")
	o.BoolVar(&o.yes, "yes", false, "drop without asking")
	o.BoolVar(&o.body, "body", false, "show the text of the item, too; it is private")
	o.IntVar(&o.limit, "limit", 20, "list at most `N` items of each lane, or N dead letters")
	rest, err := o.parse(args, 1, 3)
	if err != nil {
		return err
	}
	if err := o.read(rest[0], rest[1:]); err != nil {
		return err
	}
	cl, err := o.client(sh)
	if err != nil {
		return err
	}
	switch o.verb {
	case "list":
		return o.list(ctx, sh, cl)
	case "show":
		return o.show(ctx, sh, cl)
	case "drop":
		return o.drop(ctx, sh, cl)
	}
	var done admin.Done
	if o.letter > 0 {
		done, err = cl.RetryDead(ctx, o.letter)
	} else {
		done, err = cl.RetryPeer(ctx, o.peer)
	}
	if err != nil {
		return err
	}
	return tellDone(sh, o.flags, done)
}

// read takes the words apart.
func (o *outboxCall) read(verb string, words []string) error {
	o.verb = verb
	items := false
	for _, w := range words {
		name, number, isItem := strings.Cut(w, "/")
		n, err := strconv.ParseInt(number, 10, 64)
		switch {
		case !isItem && o.peer == "" && !items:
			o.peer = w
			continue
		case !isItem, items:
			return badUsage("%q is one argument too many", w)
		case err != nil || n < 1:
			return badUsage("%q is no item; items have names such as chat/42 and dead/7 (`yggate outbox list` has them)", w)
		case name == "dead":
			o.letter = n
		default:
			o.lane, o.seq = name, uint64(n)
		}
		items = true
	}
	return o.check(items)
}

// check says what is missing or too much.
func (o *outboxCall) check(item bool) error {
	queued := o.lane != ""
	switch {
	case o.verb != "list" && o.verb != "show" && o.verb != "retry" && o.verb != "drop":
		return badUsage("%q is none of list, show, retry, drop", o.verb)
	case o.letter > 0 && o.peer != "":
		return badUsage("dead/%d needs no peer", o.letter)
	case queued && o.peer == "":
		return badUsage("%s/%d needs the name of the peer before it", o.lane, o.seq)
	case o.limit < 1:
		return badUsage("--limit must be above 0")
	case o.all && o.verb != "drop", o.dead && o.verb != "list", o.body && o.verb != "show":
		return badUsage("--all is for drop, --dead for list and --body for show")
	case o.verb == "list" && item:
		return badUsage("list takes no item; did you mean show?")
	case o.verb == "show" && !item:
		return badUsage("show needs an item: PEER chat/42, or dead/7 (`yggate outbox list` has them)")
	case o.verb == "retry" && queued:
		return badUsage("one item cannot be sent before the others; retry %s dials the peer", o.peer)
	case o.verb == "drop" && o.all && (item || o.peer == ""):
		return badUsage("--all needs the name of a peer and no item")
	case o.verb == "drop" && !o.all && !item:
		return badUsage("drop needs an item, PEER chat/42 or dead/7, or PEER --all")
	}
	return nil
}

func (o *outboxCall) list(ctx context.Context, sh *shell, cl *admin.Client) error {
	if o.dead {
		letters, err := cl.DeadLetters(ctx, o.peer, o.limit)
		if err != nil {
			return err
		}
		return o.tellDead(sh, letters)
	}
	box, err := cl.Outbox(ctx, o.peer, o.limit)
	switch {
	case err != nil:
		return err
	case o.json:
		return printJSON(sh.out, box)
	}
	var rows [][]string
	items := 0 // that wait for the peer
	for _, l := range box.Lanes {
		if l.Items == 0 {
			continue
		}
		if l.Dir == "out" {
			items += int(l.Items)
		}
		rows = append(rows, []string{l.Peer, l.Lane, l.Dir, strconv.FormatInt(l.Items, 10), bytesText(l.Bytes), age(l.Oldest), yesNo(l.Streaming), l.Link})
	}
	if len(rows) == 0 {
		fmt.Fprintln(sh.out, "Nothing waits.")
		return nil
	}
	if err := table(sh.out, []string{"PEER", "LANE", "DIR", "ITEMS", "SIZE", "OLDEST", "STREAM", "LINK"}, rows); err != nil {
		return err
	}
	rows = nil
	for _, it := range box.Items {
		rows = append(rows, []string{it.Name, age(it.Taken), left(it.Expires), bytesText(int64(it.Bytes)), yesNo(it.Sent), parties(it)})
	}
	if err := section(sh.out, []string{"ITEM", "AGE", "EXPIRES IN", "SIZE", "SENT", "FROM -> TO"}, rows); err != nil {
		return err
	}
	switch {
	case o.peer == "":
		fmt.Fprintln(sh.out, "Next: yggate outbox list PEER shows the items")
	case items > len(rows):
		fmt.Fprintf(sh.out, "%d more wait behind these; --limit shows more at once\n", items-len(rows))
	}
	return nil
}

func (o *outboxCall) tellDead(sh *shell, letters []admin.Item) error {
	switch {
	case o.json:
		return printJSON(sh.out, letters)
	case len(letters) == 0:
		fmt.Fprintln(sh.out, "Nothing was given up.")
		return nil
	}
	var rows [][]string
	for _, it := range letters {
		rows = append(rows, []string{it.Name, it.Peer, it.Dead.Reason, ago(it.Dead.Died), told(it, "yes", "no", ""), parties(it)})
	}
	if err := table(sh.out, []string{"ITEM", "PEER", "REASON", "GIVEN UP", "TOLD", "FROM -> TO"}, rows); err != nil {
		return err
	}
	fmt.Fprintf(sh.out, "Next: yggate outbox show %s, retry %[1]s or drop %[1]s\n", letters[0].Name)
	return nil
}

func (o *outboxCall) show(ctx context.Context, sh *shell, cl *admin.Client) error {
	var it admin.Item
	var err error
	if o.letter > 0 {
		it, err = cl.DeadLetter(ctx, o.letter, o.body)
	} else {
		it, err = cl.Queued(ctx, o.peer, o.lane, o.seq, o.body)
	}
	switch {
	case err != nil:
		return err
	case o.json:
		return printJSON(sh.out, it)
	}
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(sh.out, "  %-10s %s\n", name, printable(value))
		}
	}
	fmt.Fprintf(sh.out, "%s   for %s, lane %s\n", it.Name, it.Peer, it.Lane)
	line("stanza", strings.TrimSpace(it.Protocol+" "+it.Stanza+" "+it.Type))
	line("from", it.From)
	line("to", it.To)
	line("id", it.ID)
	line("taken", moment(it.Taken))
	line("size", bytesText(int64(it.Bytes)))
	if d := it.Dead; d != nil {
		line("given up", moment(d.Died)+": "+deadReason(d))
		line("sender", told(it, "was told", "was not told yet", "is not told: "+spelled[it.Protocol]+" has no way to"))
	} else {
		line("expires", moment(it.Expires))
		line("sent", map[bool]string{true: "yes: the peer may have it", false: "no"}[it.Sent])
	}
	if o.body {
		text := it.Body
		if isTerminal(sh.out) {
			text = printable(text)
		}
		fmt.Fprintf(sh.out, "\n%s\n", text)
	}
	return nil
}

func (o *outboxCall) drop(ctx context.Context, sh *shell, cl *admin.Client) error {
	var question string
	var do func() (admin.Done, error)
	switch {
	case o.letter > 0:
		question = fmt.Sprintf("Delete dead/%d for good?", o.letter)
		do = func() (admin.Done, error) { return cl.DropDead(ctx, o.letter) }
	case o.all:
		question = fmt.Sprintf("Give up everything that waits for %s?", o.peer)
		do = func() (admin.Done, error) { return cl.DropAll(ctx, o.peer) }
	default:
		question = fmt.Sprintf("Give up %s/%d for %s?", o.lane, o.seq, o.peer)
		do = func() (admin.Done, error) { return cl.DropQueued(ctx, o.peer, o.lane, o.seq) }
	}
	if !o.yes && isTerminal(sh.out) {
		ok, err := confirm(ctx, sh, question)
		if err != nil {
			return err
		}
		if !ok {
			fmt.Fprintln(sh.out, "Nothing was changed.")
			return &toldError{errors.New("declined")}
		}
	}
	done, err := do()
	if err != nil {
		return err
	}
	return tellDone(sh, o.flags, done)
}

// spelled are protocols as people write them.
var spelled = map[string]string{string(federation.Matrix): "Matrix", string(federation.MQTT): "MQTT"}

// told says whether the sender of a dead letter knows, in these words; never is for
// senders whose protocol has no errors.
func told(it admin.Item, yes, no, never string) string {
	switch {
	case it.Protocol != "" && !federation.Protocol(it.Protocol).Bounces():
		return never
	case it.Dead.Told:
		return yes
	}
	return no
}

// deadReason tells in words why an item was given up.
func deadReason(d *admin.Dead) string {
	words := map[string]string{
		"expired": "the peer could not be reached in time", "dropped": "dropped by the operator", "peer": "the peer was blocked or removed",
	}
	text := words[d.Reason]
	switch {
	case text == "":
		text = d.Reason
	case d.Detail != "":
		text += " (" + d.Detail + ")"
	}
	return text
}

// parties tells who wrote to whom.
func parties(it admin.Item) string {
	if it.From == "" && it.To == "" {
		return ""
	}
	return printable(strings.TrimLeft(it.From+" -> "+it.To, " "))
}

// age is how long ago t was, "" if it never was.
func age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return short(time.Since(t))
}

// left is how long it is until t, "" if that never comes.
func left(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return short(time.Until(t))
}

// moment tells a time by the clock and by its distance.
func moment(t time.Time) string {
	switch d := time.Until(t); {
	case t.IsZero():
		return ""
	case d > 0:
		return t.Local().Format(time.DateTime) + " (in " + short(d) + ")"
	}
	return t.Local().Format(time.DateTime) + " (" + ago(t) + ")"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
