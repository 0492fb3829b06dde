package federation

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// describeSelf returns a full descriptor of an identity.
func describeSelf(id *Identity, now time.Time) *Descriptor {
	return &Descriptor{
		Version: 1, Grid: id.ID(), Rot: id.Rot(), Seq: 42, Key: GridKey(id.Key()), Next: id.next, Past: id.past,
		Issued: now.Unix(), Expires: now.Add(DescriptorLifetime).Unix(), Name: "riverside",
		Nodes:  []Node{{ID: "n1", SPKI: id.NodeSPKI(), Addrs: []string{"ygg:" + strings.Repeat("0a", 32)}, Prio: 10}},
		XMPP:   &XMPPService{Domains: []string{"river.grid", "muc.river.grid"}, MaxStanza: 262144},
		Matrix: &MatrixService{ServerNames: []string{"river.grid"}},
		MQTT:   &MQTTService{Prefixes: []string{"river/"}},
	}
}

func sign(t testing.TB, id *Identity, d *Descriptor) []byte {
	t.Helper()
	raw, err := signDescriptor(id.key, d)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// signPayload signs bytes as they are.
func signPayload(key ed25519.PrivateKey, payload string) []byte {
	sig := ed25519.Sign(key, []byte(descriptorContext+payload))
	return fmt.Appendf(nil, `{"payload":%q,"sig":%q}`, base64.StdEncoding.EncodeToString([]byte(payload)), base64.StdEncoding.EncodeToString(sig))
}

func TestDescriptorRoundTrip(t *testing.T) {
	id, _, _ := newIdentity(t)
	now := time.Now()
	want := describeSelf(id, now)
	raw := sign(t, id, want)
	if !bytes.Equal(raw, sign(t, id, want)) {
		t.Error("the same descriptor gives other bytes")
	}
	got, err := ParseDescriptor(raw, now)
	must(t, err)
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(got)
	if !bytes.Equal(a, b) {
		t.Errorf("got %s\nwant %s", b, a)
	}
	if got.Stale(now) || !got.Stale(now.Add(DescriptorLifetime+time.Second)) {
		t.Error("stale is not soft expiry")
	}
	if n := len(got.Claims()); n != 3 {
		t.Errorf("%d claims", n)
	}
	if a := got.Addrs(); len(a) != 1 || a[0].Net != "ygg" {
		t.Errorf("addresses %v", a)
	}
}

func TestDescriptorLeavesEmptyServicesOut(t *testing.T) {
	id, _, _ := newIdentity(t)
	d := describeSelf(id, time.Now())
	d.XMPP, d.Matrix, d.MQTT = nil, nil, nil
	payload, err := json.Marshal(d)
	must(t, err)
	for _, word := range []string{"xmpp", "matrix", "mqtt", "past", "revoked"} {
		if strings.Contains(string(payload), word) {
			t.Errorf("%q in %s", word, payload)
		}
	}
}

func TestDescriptorNodesInOrder(t *testing.T) {
	d := &Descriptor{Nodes: []Node{{Addrs: []string{"tcp:127.0.0.2"}, Prio: 20}, {Addrs: []string{"tcp:127.0.0.3"}, Prio: 10}}}
	if a := d.Addrs(); a[0].Node != "127.0.0.3" || a[1].Node != "127.0.0.2" {
		t.Errorf("%v", a)
	}
}

func TestParseDescriptorTolerates(t *testing.T) {
	id, _, _ := newIdentity(t)
	now := time.Now()
	payload, err := json.Marshal(describeSelf(id, now))
	must(t, err)
	later := strings.Replace(string(payload), `{"v":1,`, `{"v":1,"from_a_later_version":{"a":[1,{"b":null}]},`, 1)
	if _, err := ParseDescriptor(signPayload(id.key, later), now); err != nil {
		t.Errorf("unknown member: %v", err)
	}
	old := describeSelf(id, now.Add(-10*365*24*time.Hour))
	if d, err := ParseDescriptor(sign(t, id, old), now); err != nil || !d.Stale(now) {
		t.Errorf("expiry is not soft: %v", err)
	}
	ahead := describeSelf(id, now.Add(9*time.Minute))
	if _, err := ParseDescriptor(sign(t, id, ahead), now); err != nil {
		t.Errorf("small skew: %v", err)
	}
}

func TestParseDescriptorRefuses(t *testing.T) {
	id, _, _ := newIdentity(t)
	other, _, _ := newIdentity(t)
	now := time.Now()
	good, err := json.Marshal(describeSelf(id, now))
	must(t, err)
	replace := func(old, new string) func() []byte {
		return func() []byte {
			if !strings.Contains(string(good), old) {
				t.Fatalf("%q is not in %s", old, good)
			}
			return signPayload(id.key, strings.Replace(string(good), old, new, 1))
		}
	}
	change := func(f func(d *Descriptor)) func() []byte {
		return func() []byte {
			d := describeSelf(id, now)
			f(d)
			payload, err := json.Marshal(d)
			must(t, err)
			return signPayload(id.key, string(payload))
		}
	}
	many := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("d%d.grid", i))
		}
		return out
	}
	for name, c := range map[string]struct {
		raw  func() []byte
		want string
	}{
		"nothing":            {func() []byte { return nil }, "ends early"},
		"an array":           {func() []byte { return []byte("[]") }, "want a JSON object"},
		"trailing data":      {func() []byte { return append(signPayload(id.key, string(good)), '1') }, "after the JSON object"},
		"cut off":            {func() []byte { return signPayload(id.key, string(good[:len(good)-1])) }, "ends early"},
		"too long":           {func() []byte { return bytes.Repeat([]byte(" "), MaxEnvelope+1) }, "at most 16384"},
		"not UTF-8":          {replace("riverside", "river\xffside"), "not UTF-8"},
		"too deep":           {replace(`"v":1,`, `"v":1,"x":`+strings.Repeat("[", 9)+strings.Repeat("]", 9)+`,`), "deeper than 8"},
		"duplicate":          {replace(`"v":1,`, `"v":1,"seq":7,`), "occurs twice"},
		"duplicate deep":     {replace(`"id":"n1",`, `"id":"n1","id":"n2",`), "occurs twice"},
		"duplicate unknown":  {replace(`"v":1,`, `"v":1,"z":7,"z":8,`), "occurs twice"},
		"case variant":       {replace(`"v":1,`, `"v":1,"GRID":"x",`), "names are of a-z"},
		"case variant alone": {replace(`"name":`, `"Name":`), "names are of a-z"},
		"folding letter":     {replace(`"seq":`, `"ſeq":`), "names are of a-z"},
		"escaped name":       {replace(`"seq":`, `"\u0053eq":`), "names are of a-z"},
		"version 2":          {replace(`"v":1`, `"v":2`), "version 2"},
		"no version":         {replace(`"v":1,`, ``), "version 0"},
		"wrong type":         {replace(`"seq":42`, `"seq":"42"`), "seq"},
		"negative seq":       {replace(`"seq":42`, `"seq":-1`), "seq"},
		"seq out of range":   {replace(`"seq":42`, `"seq":9223372036854775807`), "out of range"},
		"signed by another":  {func() []byte { return signPayload(other.key, string(good)) }, "signature"},
		"changed after": {func() []byte {
			return bytes.Replace(signPayload(id.key, string(good)), []byte(`"payload":"eyJ`), []byte(`"payload":"eyA`), 1)
		}, "bad descriptor"},
		"other context":       {func() []byte { return sigOnly(id.key, good) }, "signature"},
		"id of another":       {change(func(d *Descriptor) { d.Grid = other.ID() }), "not the one in the grid id"},
		"id in upper case":    {change(func(d *Descriptor) { d.Grid = GridID(strings.ToUpper(string(d.Grid))) }), "lower case"},
		"bad id":              {change(func(d *Descriptor) { d.Grid = "abc" }), "grid id"},
		"key in upper case":   {replace("ed25519:", "ED25519:"), "want ed25519:"},
		"no key":              {replace(`"key":"`+GridKey(id.Key()).String()+`",`, ``), "no key"},
		"short key":           {replace(GridKey(id.Key()).String(), "ed25519:00"), "want ed25519:"},
		"no next":             {change(func(d *Descriptor) { d.Next = Hash{} }), "no next"},
		"rot without history": {change(func(d *Descriptor) { d.Rot = 1 }), "past keys"},
		"negative rot":        {change(func(d *Descriptor) { d.Rot = -1 }), "past keys"},
		"false history": {change(func(d *Descriptor) {
			d.Rot, d.Past = 1, []Rotation{signRotation(other.key, id.ID(), 0, HashKey(id.Key()))}
		}), "rotation 0"},
		"unsigned history":     {change(func(d *Descriptor) { d.Rot, d.Past = 1, []Rotation{unsigned(id)} }), "rotation 0: bad signature"},
		"past key left out":    {func() []byte { return withoutPastKey(t, id, now) }, "rotation 1: no key"},
		"from the future":      {change(func(d *Descriptor) { d.Issued = now.Add(11 * time.Minute).Unix() }), "compare the clocks"},
		"issued before 1970":   {change(func(d *Descriptor) { d.Issued = -1 }), "compare the clocks"},
		"expires before issue": {change(func(d *Descriptor) { d.Expires = d.Issued - 1 }), "expires before"},
		"control in name":      {change(func(d *Descriptor) { d.Name = "a\x1b[31m" }), "cannot be printed"},
		"direction in name":    {change(func(d *Descriptor) { d.Name = "a\u202eb" }), "cannot be printed"},
		"long name":            {change(func(d *Descriptor) { d.Name = strings.Repeat("x", 65) }), "at most 64"},
		"no nodes":             {change(func(d *Descriptor) { d.Nodes = nil }), "0 nodes"},
		"too many nodes":       {change(func(d *Descriptor) { d.Nodes = make([]Node, 17) }), "17 nodes"},
		"node without address": {change(func(d *Descriptor) { d.Nodes[0].Addrs = nil }), "0 addresses"},
		"node without name":    {change(func(d *Descriptor) { d.Nodes[0].ID = "" }), "name of its own"},
		"two nodes, one name":  {change(func(d *Descriptor) { d.Nodes = append(d.Nodes, d.Nodes[0]) }), "name of its own"},
		"one address twice":    {change(func(d *Descriptor) { d.Nodes = append(d.Nodes, Node{ID: "n2", Addrs: d.Nodes[0].Addrs}) }), "occurs twice"},
		"short ygg key":        {change(func(d *Descriptor) { d.Nodes[0].Addrs = []string{"ygg:0a"} }), "not in the form"},
		"ygg key upper case":   {change(func(d *Descriptor) { d.Nodes[0].Addrs = []string{"ygg:" + strings.Repeat("0A", 32)} }), "not in the form"},
		"address of no net":    {change(func(d *Descriptor) { d.Nodes[0].Addrs = []string{"x"} }), "NETWORK:NODE"},
		"address grid:":        {change(func(d *Descriptor) { d.Nodes[0].Addrs = []string{"grid:x"} }), "not in the form"},
		"address with space":   {change(func(d *Descriptor) { d.Nodes[0].Addrs = []string{"x:a b"} }), "not in the form"},
		"host as tcp address":  {change(func(d *Descriptor) { d.Nodes[0].Addrs = []string{"tcp:example.org"} }), "not in the form"},
		"many revoked":         {change(func(d *Descriptor) { d.Revoked = make([]Hash, 65) }), "65 revoked"},
		"domain upper case":    {change(func(d *Descriptor) { d.XMPP.Domains[0] = "River.grid" }), "must be written"},
		"domain is an address": {change(func(d *Descriptor) { d.XMPP.Domains[0] = "10.0.0.1" }), "IP address"},
		"domain twice":         {change(func(d *Descriptor) { d.XMPP.Domains[1] = d.XMPP.Domains[0] }), "occurs twice"},
		"empty xmpp":           {change(func(d *Descriptor) { d.XMPP.Domains = nil }), "leave the protocol out"},
		"too many domains":     {change(func(d *Descriptor) { d.XMPP.Domains = many(65) }), "65 domains"},
		"negative max_stanza":  {change(func(d *Descriptor) { d.XMPP.MaxStanza = -1 }), "max_stanza"},
		"bad server name":      {change(func(d *Descriptor) { d.Matrix.ServerNames[0] = "a:b:c" }), "port"},
		"mqtt wildcard":        {change(func(d *Descriptor) { d.MQTT.Prefixes[0] = "a/+/" }), "without wildcards"},
		"mqtt without slash":   {change(func(d *Descriptor) { d.MQTT.Prefixes[0] = "abc" }), "ends in"},
		"mqtt system topic":    {change(func(d *Descriptor) { d.MQTT.Prefixes[0] = "$SYS/" }), "ends in"},
		"empty mqtt":           {change(func(d *Descriptor) { d.MQTT.Prefixes = nil }), "leave the protocol out"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := ParseDescriptor(c.raw(), now)
			if err == nil {
				t.Fatalf("accepted: %+v", d)
			}
			if !errors.Is(err, ErrBadDescriptor) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %q does not say %q", err, c.want)
			}
		})
	}
}

// unsigned is a rotation of a grid's key to itself that it never signed.
func unsigned(id *Identity) Rotation {
	r := signRotation(id.key, id.ID(), 0, HashKey(id.Key()))
	r.Sig[0] ^= 1
	return r
}

// withoutPastKey is a descriptor whose history announces the hash of no key at all, and
// goes on with that.
func withoutPastKey(t *testing.T, id *Identity, now time.Time) []byte {
	d := describeSelf(id, now)
	first := signRotation(id.key, id.ID(), 0, HashKey(nil))
	d.Rot, d.Past = 2, []Rotation{first, {Sig: first.Sig}}
	payload, err := json.Marshal(d)
	must(t, err)
	none := []byte(`"key":"` + GridKey(nil).String() + `",`)
	if !bytes.Contains(payload, none) {
		t.Fatalf("%s is not in %s", none, payload)
	}
	return signPayload(id.key, string(bytes.Replace(payload, none, nil, 1)))
}

// sigOnly signs without the context, as another use of the key might.
func sigOnly(key ed25519.PrivateKey, payload []byte) []byte {
	raw, err := json.Marshal(envelope{Payload: payload, Sig: ed25519.Sign(key, payload)})
	if err != nil {
		panic(err)
	}
	return raw
}

// rotations returns the descriptors of one grid over its first rotations.
func rotations(t *testing.T, n int) (ids []*Identity) {
	id, dir, sheet := newIdentity(t)
	ids = append(ids, id)
	for range n {
		var next string
		id, err := Rotate(dir, sheet, func(s string) error { next = s; return nil })
		must(t, err)
		sheet = next
		ids = append(ids, id)
	}
	return ids
}

func TestContinues(t *testing.T) {
	ids := rotations(t, 3)
	now := time.Now()
	desc := func(rot int, seq uint64) *Descriptor {
		d := describeSelf(ids[rot], now)
		d.Seq = seq
		got, err := ParseDescriptor(sign(t, ids[rot], d), now)
		must(t, err)
		return got
	}
	// A thief of the first key makes a successor of his own.
	_, stolen, err := ed25519.GenerateKey(nil)
	must(t, err)
	thief := &Identity{
		id: ids[0].ID(), key: stolen, node: ids[0].node, next: Hash{1},
		past: []Rotation{signRotation(ids[0].key, ids[0].ID(), 0, HashKey(stolen.Public().(ed25519.PublicKey)))},
	}
	forked, err := ParseDescriptor(sign(t, thief, describeSelf(thief, now)), now)
	must(t, err)
	moved := desc(0, 50)
	moved.Next = Hash{1}

	for name, c := range map[string]struct {
		old, new *Descriptor
		want     error
	}{
		"newer":                        {desc(0, 1), desc(0, 2), nil},
		"older":                        {desc(0, 2), desc(0, 1), ErrRollback},
		"rotated":                      {desc(0, 1<<40), desc(1, 1), nil},
		"back before the rotation":     {desc(1, 1), desc(0, 1<<40), ErrRollback},
		"several rotations at once":    {desc(0, 9), desc(3, 1), nil},
		"later ones, too":              {desc(1, 9), desc(3, 1), nil},
		"a thief's rotation":           {desc(0, 1), forked, errForeignKey},
		"a thief's, after ours":        {desc(1, 1), forked, errForeignKey},
		"ours, after a thief's seq":    {desc(0, 1<<61), desc(1, 1), nil},
		"next moved without rotation":  {desc(0, 1), moved, errForeignKey},
		"the rotation after a thief's": {forked, desc(2, 1), errForeignKey},
	} {
		if err := c.new.continues(c.old); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestDescriptorOfManyRotationsFits(t *testing.T) {
	ids := rotations(t, MaxRotations)
	last := ids[len(ids)-1]
	d := describeSelf(last, time.Now())
	if _, err := ParseDescriptor(sign(t, last, d), time.Now()); err != nil {
		t.Fatal(err)
	}
}

func FuzzDescriptor(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	id := &Identity{id: NewGridID(key.Public().(ed25519.PublicKey)), key: key, node: key, next: Hash{1}}
	now := time.Unix(1_795_000_000, 0)
	good, err := json.Marshal(describeSelf(id, now))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	for _, s := range []string{
		"", "{}", "[]", `{"v":1}`, `{"v":1,"v":1}`, `{"V":1}`, `{"v":1e0}`, `{"v":1,"past":[{}]}`, `{"v":1,"nodes":null}`,
		strings.Repeat(`{"a":`, 20), strings.Replace(string(good), `"rot":0`, `"rot":1`, 1),
		strings.Replace(string(good), `"xmpp":{`, `"xmpp":{"x":{},`, 1),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		// Both as a payload that is rightly signed, so that what is behind the
		// signature is reached, and as an envelope.
		for _, raw := range [][]byte{signPayload(key, string(payload)), payload} {
			d, err := ParseDescriptor(raw, now)
			if err != nil {
				if !errors.Is(err, ErrBadDescriptor) {
					t.Fatalf("error of another kind: %v", err)
				}
				continue
			}
			if d.Grid != id.ID() || len(d.Addrs()) == 0 {
				t.Fatalf("accepted %+v", d)
			}
			for _, c := range d.Claims() {
				if norm, err := NormalizeClaim(c.Protocol, c.Domain); err != nil || norm != c.Domain {
					t.Fatalf("claim %q is not normal: %q, %v", c.Domain, norm, err)
				}
			}
			// What was understood can be said again.
			again, err := signDescriptor(key, d)
			if err != nil {
				continue // escapes may make it longer than is allowed
			}
			if _, err := ParseDescriptor(again, now); err != nil {
				t.Fatalf("not stable: %v", err)
			}
		}
	})
}
