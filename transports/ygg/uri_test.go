package ygg

import (
	"strings"
	"testing"
)

const someKey = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

func TestParsePeer(t *testing.T) {
	for _, uri := range []string{
		"tcp://192.0.2.1:1000",
		"tls://[2001:db8::1]:443?key=" + someKey + "&key=" + someKey,
		"quic://peer.example:1?priority=255&password=x",
		"ws://peer.example:80/path?maxbackoff=5s",
		"wss://peer.example:443/path?sni=front.example",
		"unix:///run/peer.sock",
		"socks://user:pass@127.0.0.1:9050/peer.example:443",
		"sockstls://127.0.0.1:9050/[2001:db8::1]:443",
	} {
		u, err := parsePeer(uri)
		if err != nil {
			t.Errorf("%s: %v", uri, err)
			continue
		}
		want := "10s"
		if strings.Contains(uri, "maxbackoff") {
			want = "5s"
		}
		if got := u.Query().Get("maxbackoff"); got != want {
			t.Errorf("%s: maxbackoff=%s, want %s", uri, got, want)
		}
	}
}

func TestParsePeerRefuses(t *testing.T) {
	for uri, want := range map[string]string{
		"":                                 "unknown scheme",
		"peer.example:443":                 "unknown scheme",
		"http://peer.example:443":          "want one of tcp, tls",
		"tls://peer.example":               "not HOST:PORT",
		"tls://:443":                       "names no host",
		"tls://2001:db8::1:443":            "brackets",
		"tls://peer.example:0":             "port 0",
		"tls://peer.example:70000":         "up to 65535",
		"tls://peer.example:https":         "not a URI",
		"tls://peer.example:443?keys=aa":   `unknown option "keys"; known here: key,`,
		"tls://peer.example:443?key=aabb":  "64 hex digits",
		"tls://peer.example:443?key=":      "64 hex digits",
		"tls://a.example:1?priority=256":   "0 to 255",
		"tls://a.example:1?maxbackoff=1s":  "at least 5s",
		"tls://a.example:1?maxbackoff=10":  "at least 5s",
		"tls://a.example:1?password=":      "1 to 64",
		"tls://a.example:1?sni=%zz":        "options",
		"unix://run/peer.sock":             "absolute path",
		"unix:peer.sock":                   "absolute path",
		"socks://127.0.0.1:9050":           "PROXY:PORT/HOST:PORT",
		"socks://127.0.0.1:9050/a.example": "PROXY:PORT/HOST:PORT",
		"tls://a.example:1\x00":            "not a URI",
	} {
		if _, err := parsePeer(uri); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parsePeer(%q) = %v, want an error with %q", uri, err, want)
		}
	}
	for uri, want := range map[string]string{
		"wss://[::]:443":                "reverse proxy",
		"socks://127.0.0.1:9050/a:1":    "unknown scheme",
		"tls://[::]:443?key=" + someKey: "unknown option",
	} {
		if _, err := parseListen(uri); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseListen(%q) = %v, want an error with %q", uri, err, want)
		}
	}
}

// TestNoSecretsInErrors puts a password wherever a URI can hold one.
func TestNoSecretsInErrors(t *testing.T) {
	for _, uri := range []string{
		"tls://a.example:1?password=hunter2&nonsense=1",
		"tls://a.example:x?password=hunter2",
		"socks://user:hunter2@127.0.0.1:9050/nowhere",
		"http://user:hunter2@a.example:1",
		"tls://a.example:1?password=hunter2" + strings.Repeat("x", 64),
	} {
		if _, err := parsePeer(uri); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("error of %q: %v", uri, err)
		}
	}
}

func FuzzParsePeer(f *testing.F) {
	f.Add("tls://a.example:1?key=" + someKey)
	f.Add("socks://u:p@127.0.0.1:1/b:2")
	f.Add("tls://a.example:1?")
	f.Fuzz(func(t *testing.T, uri string) {
		u, err := parsePeer(uri)
		if err != nil {
			return
		}
		again, err := parsePeer(u.String())
		if err != nil {
			t.Fatalf("%q became %q: %v", uri, u, err)
		}
		if peeringID(again) != peeringID(u) {
			t.Fatalf("%q: peering %q became %q", uri, peeringID(u), peeringID(again))
		}
	})
}

func TestConfigRefuses(t *testing.T) {
	key := newKey(t)
	mixed := append([]byte(nil), key...)
	copy(mixed[32:], newKey(t)[32:])
	for want, cfg := range map[string]Config{
		"want an ed25519 private key": {},
		"public half":                 {Key: mixed},
		"unknown scheme":              {Key: key, Peers: []string{"nonsense"}},
		"listed twice":                {Key: key, Peers: []string{"tcp://a.example:1", "tcp://a.example:1?priority=1"}},
		"reverse proxy":               {Key: key, Listen: []string{"wss://[::]:1"}},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New: %v, want an error with %q", err, want)
		}
	}
}
