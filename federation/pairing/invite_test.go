package pairing

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/transports"
)

func sample() Invite {
	inv := Invite{
		Grid:    ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey),
		Expires: time.Unix(1_795_000_000, 0),
		Nodes: []transports.Addr{
			{Net: "ygg", Node: strings.Repeat("0a", 32)},
			{Net: "i2p", Node: strings.Repeat("a", 52) + i2pSuffix},
			{Net: "tcp", Node: "127.0.0.2"},
		},
		Peerings: []string{"tls://192.0.2.1:443", "quic://[2001:db8::1]:9000?key=ab"},
	}
	copy(inv.secret[:], "0123456789abcdef")
	return inv
}

func encode(t testing.TB, inv Invite) string {
	t.Helper()
	s, err := inv.Encode()
	must(t, err)
	return s
}

func TestInviteRoundTrip(t *testing.T) {
	want := sample()
	s := encode(t, want)
	if s != strings.ToUpper(s) || !strings.HasPrefix(s, "YG1") {
		t.Errorf("form %q", s)
	}
	got, err := Parse("\n " + s + " \n")
	must(t, err)
	if !got.Grid.Equal(want.Grid) || !got.Expires.Equal(want.Expires) || got.secret != want.secret ||
		len(got.Nodes) != 3 || len(got.Peerings) != 2 || got.ID() != want.ID() || !bytes.Equal(got.macKey(), want.macKey()) {
		t.Errorf("got %+v", got)
	}
	for i := range got.Nodes {
		if got.Nodes[i] != want.Nodes[i] {
			t.Errorf("node %v, want %v", got.Nodes[i], want.Nodes[i])
		}
	}
}

func TestInviteIsShort(t *testing.T) {
	inv := sample()
	inv.Nodes, inv.Peerings = inv.Nodes[:1], nil
	if s := encode(t, inv); len(s) > 160 {
		t.Errorf("%d characters for the plainest invite", len(s))
	}
}

func TestInviteSecretStaysOut(t *testing.T) {
	inv := sample()
	other := inv
	other.secret[0] ^= 1
	if inv.ID() == other.ID() || bytes.Equal(inv.macKey(), other.macKey()) || bytes.Contains(inv.macKey(), inv.idBytes()) {
		t.Error("the derived values do not depend on the secret, or on each other")
	}
}

func TestParseRefuses(t *testing.T) {
	good := encode(t, sample())
	flip := func(i int) string {
		b := []byte(good)
		if b[i]++; b[i] > 'Z' || b[i] > '7' && b[i] < 'A' {
			b[i] = 'A'
		}
		return string(b)
	}
	// remade puts a changed body under a fitting checksum.
	remade := func(f func(body []byte) []byte) string {
		raw, err := b32.DecodeString(good[3:])
		must(t, err)
		body := f(raw[:len(raw)-4])
		return invitePrefix + b32.EncodeToString(binary.BigEndian.AppendUint32(body, crc32.ChecksumIEEE(body)))
	}
	add := func(typ byte, value string) string {
		return remade(func(b []byte) []byte { return append(append(b, typ, byte(len(value))), value...) })
	}
	for name, c := range map[string]struct{ s, want string }{
		"nothing":            {"", `must start with "YG1"`},
		"another string":     {"https://example.org", `must start with "YG1"`},
		"lower case":         {strings.ToLower(good), "upper case"},
		"later form":         {"YG2" + good[3:], "upgrade"},
		"typo":               {flip(40), "mistyped"},
		"typo at the end":    {flip(len(good) - 3), "mistyped"},
		"one missing":        {good[:len(good)-1], "copy it again"},
		"half":               {good[:len(good)/2], "copy it again"},
		"prefix alone":       {"YG1", "some are missing"},
		"a digit":            {good[:20] + "1" + good[21:], "'1' at character 21"},
		"a space":            {good[:20] + " " + good[20:], "' ' at character 21"},
		"another script":     {good[:20] + "А" + good[21:], "at character 21"},
		"much":               {good + strings.Repeat("A", maxInvite), "too many"},
		"later version":      {remade(func(b []byte) []byte { b[0] = 2; return b }), "version 2"},
		"flags":              {remade(func(b []byte) []byte { b[1] = 1; return b }), "version 1.1"},
		"no node":            {remade(func(b []byte) []byte { return b[:headLen] }), "0 node addresses"},
		"cut field":          {remade(func(b []byte) []byte { return b[:len(b)-1] }), "cut off"},
		"half a field":       {remade(func(b []byte) []byte { return append(b, 1) }), "cut off"},
		"unknown field":      {add(9, "x"), "field 9"},
		"short key":          {add(fieldYgg, "x"), "want 32"},
		"same node":          {add(fieldYgg, strings.Repeat("\x0a", 32)), "occurs twice"},
		"long form of a key": {add(fieldNode, "ygg:"+strings.Repeat("0b", 32)), "short form"},
		"bad node":           {add(fieldNode, "tcp:example.org"), "not in the form"},
		"local socket":       {add(fieldPeering, "unix:///run/x.sock"), "want a URI"},
		"no host":            {add(fieldPeering, "tls://:443"), "want a URI"},
		"user in URI":        {add(fieldPeering, "tls://a@b:443"), "want a URI"},
		"control in URI":     {add(fieldPeering, "tls://a:443?k=\x1b"), "want a URI"},
	} {
		inv, err := Parse(c.s)
		if err == nil {
			t.Errorf("%s: accepted %+v", name, inv)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %q does not say %q", name, err, c.want)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Invite){
		"no node": func(i *Invite) { i.Nodes = nil },
		"five nodes": func(i *Invite) {
			i.Nodes = append(i.Nodes, transports.Addr{Net: "a", Node: "b"}, transports.Addr{Net: "a", Node: "c"})
		},
		"long node":   func(i *Invite) { i.Nodes[0] = transports.Addr{Net: "x", Node: strings.Repeat("y", 300)} },
		"bad peering": func(i *Invite) { i.Peerings[0] = "hello" },
		"five ways":   func(i *Invite) { i.Peerings = strings.Fields(strings.Repeat("tls://a:1 ", 5)) },
	} {
		inv := sample()
		spoil(&inv)
		if s, err := inv.Encode(); err == nil {
			t.Errorf("%s: %s", name, s)
		}
	}
}

func FuzzInvite(f *testing.F) {
	good := encode(f, sample())
	plain := sample()
	plain.Nodes, plain.Peerings = plain.Nodes[:1], nil
	for _, s := range []string{good, encode(f, plain), "", "YG1", "YG2AAAA", good[:50], strings.ToLower(good), "YG1" + strings.Repeat("A", 200)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		// As it is, and with its checksum mended so that what is behind is reached.
		if raw, err := b32.DecodeString(strings.TrimPrefix(s, invitePrefix)); err == nil && len(raw) > 4 {
			body := raw[:len(raw)-4]
			check(t, invitePrefix+b32.EncodeToString(binary.BigEndian.AppendUint32(bytes.Clone(body), crc32.ChecksumIEEE(body))))
		}
		check(t, s)
	})
}

// check holds that what Parse takes has one form: the one Encode gives.
func check(t *testing.T, s string) {
	inv, err := Parse(s)
	if err != nil {
		return
	}
	again, err := inv.Encode()
	if err != nil {
		t.Fatalf("%q cannot be said again: %v", s, err)
	}
	back, err := Parse(again)
	if err != nil || back.ID() != inv.ID() || len(back.Nodes) != len(inv.Nodes) || len(back.Peerings) != len(inv.Peerings) {
		t.Fatalf("%q came back as %+v, %v", s, back, err)
	}
}
