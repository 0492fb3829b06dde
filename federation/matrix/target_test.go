package matrix

import (
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"
)

func TestTargets(t *testing.T) {
	for _, c := range []struct {
		raw  string
		want target
	}{
		{"/_matrix/federation/v1/send/1700-abc", target{endpoint: "send", signed: true, txn: "1700-abc"}},
		{"/_matrix/federation/v1/send/1%2B2/", target{endpoint: "send", signed: true, txn: "1+2"}},
		{"/_matrix/federation/v2/invite/%21r%3Aa.grid/%24e", target{endpoint: "invite", signed: true, room: "!r:a.grid"}},
		{"/_matrix/federation/v1/make_join/!r:a.grid/@u:b.grid?ver=11&ver=12", target{endpoint: "make_join", signed: true, room: "!r:a.grid"}},
		{"/_matrix/federation/v2/send_join/!r/%24a%2Fb%2fc", target{endpoint: "send_join", signed: true, room: "!r"}},
		{"/_matrix/federation/v1/make_knock/!r/@u", target{endpoint: "make_knock", signed: true, room: "!r"}},
		{"/_matrix/federation/v1/send_knock/!r/$e", target{endpoint: "send_knock", signed: true, room: "!r"}},
		{"/_matrix/federation/v1/make_leave/!r/@u", target{endpoint: "make_leave", signed: true, room: "!r"}},
		{"/_matrix/federation/v2/send_leave/!r/$e", target{endpoint: "send_leave", signed: true, room: "!r"}},
		{"/_matrix/federation/v1/event/$a%2Fb", target{endpoint: "event", signed: true}},
		{"/_matrix/federation/v1/query/profile?user_id=%40a%3Ab.grid&x=%5c%2f..", target{endpoint: "query", signed: true}},
		{"/_matrix/federation/v1/user/devices/@z%C3%A9:b.grid", target{endpoint: "user", signed: true}},
		{"/_matrix/federation/v1/media/download/abc", target{endpoint: "media", signed: true}},
		{"/_matrix/federation/v1/version", target{endpoint: "version"}},
		{"/_matrix/federation/v1/version/more", target{endpoint: "version", signed: true}},
		{"/_matrix/federation/v1/openid/userinfo?access_token=x", target{endpoint: "openid"}},
		{"/_matrix/federation/v1/3pid/onbind", target{endpoint: "other", signed: true}},
		{"/_matrix/federation/unstable/org.matrix.msc4242/send/x", target{endpoint: "other", signed: true}},
		{"/_matrix/key/v2/server", target{api: apiKey, endpoint: "key_server"}},
		{"/_matrix/key/v2/server/ed25519:1", target{api: apiKey, endpoint: "key_server"}},
		{"/_matrix/key/v2/query", target{api: apiKey, endpoint: "key_query"}},
		{"/_matrix/key/v2/query/b.grid?minimum_valid_until_ts=1", target{api: apiKey, endpoint: "key_query", about: "b.grid"}},
		{"/_matrix/media/v3/download/b.grid/abc/a%20name.png?allow_remote=false", target{api: apiMedia, endpoint: "media", about: "b.grid"}},
		{"/_matrix/media/r0/thumbnail/b.grid:8448/abc?width=1", target{api: apiMedia, endpoint: "media", about: "b.grid:8448"}},
	} {
		c.want.raw = c.raw
		if got, err := parseTarget(c.raw); err != nil || got != c.want {
			t.Errorf("%s\n got %+v, %v\nwant %+v", c.raw, got, err, c.want)
		}
	}
}

// notTargets are refused, by why.
var notTargets = map[string][]string{
	"only the federation, key and media": {
		"/_matrix", "/_matrix/", "/_matrix/federation", "/_matrix/federation/", "/_matrix/federation/v1", "/_matrix/federation?/v1/version",
		"/_matrix/client/v3/login", "/_matrix/client/versions", "/_synapse/admin/v1/users", "/_dendrite/admin/purgeRoom/x", "/metrics", "/x/_matrix/federation/v1/version",
		"/_matrix/app/v1/transactions/1", "/_matrix/federationx/v1/version", "/_Matrix/federation/v1/version", "/_matrix/identity/v2/lookup",
		"/_matrix/key/v1/server", "/_matrix/key/v2/other", "/_matrix/key/v2/server/a/b", "/_matrix/key/v2/query/a/b/c", "/.well-known/matrix/server",
		"/_matrix/media/v3/upload", "/_matrix/media/v3/upload/b.grid/x", "/_matrix/media/v3/config", "/_matrix/media/v3/preview_url?url=http://127.0.0.1/",
		"/_matrix/media/v3/download/b.grid", "/_matrix/media/v9/download/b.grid/x", "/_matrix/media/unstable/download/b.grid/x",
	},
	"dot segment": {
		"/_matrix/federation/../client/v3/login", "/_matrix/federation/v1/./version", "/_matrix/federation/v1/send/%2e%2E", "/_matrix/federation/v1/send/.%2e/x",
		"/_matrix/federation/v1/send/x/..", "/_matrix/media/v3/download/b.grid/..",
	},
	"empty segment": {
		"/", "//", "//_matrix/federation/v1/version", "/_matrix//federation/v1/version", "/_matrix/federation//v1/version", "/_matrix/federation/v1/send//",
		"//evil.example/_matrix/federation/v1/version",
	},
	"0x5c": {`/_matrix/federation/v1/send/..\x`, `/_matrix\federation/v1/version`, `/_matrix/federation/v1/query/x?\`},
	"backslash": {
		"/_matrix/federation/v1/send/..%5cx", "/_matrix/federation/v1/send/a%5Cb", "/_matrix/federation/v1/event/$%5c", "/_matrix/federation/v1/send/a%00", "/_matrix/federation/v1/send/%7f%0a",
	},
	"encoded slash": {"/_matrix/federation/v1/send/a%2fb", "/_matrix/federation/v1/send/..%2F..%2Fclient", "/_matrix/federation%2fv1/version", "/_matrix/federation/v1/make_join/!r%2F$/x",
		"/_matrix/federation/v1/event/$%2F..%2F..%2Fclient", "/_matrix/federation/v1/event/%24a%2fb:a.grid"},
	"encoded twice": {"/_matrix/federation/v1/send/a%252fb", "/_matrix/federation/v1/send/%252e%252e", "/_matrix/federation/v1/send/%25252f", "/_matrix/federation/v1/send/x%255c"},
	"literal":       {"/_matrix/%66ederation/v1/version", "/_matrix/federation/v1/%69nvite/!r/$e", "/%5fmatrix/federation/v1/version", "/_matrix/federation/v%31/version"},
	"wrong percent": {"/_matrix/federation/v1/send/%", "/_matrix/federation/v1/send/%2", "/_matrix/federation/v1/send/%zz"},
	"no absolute":   {"", "*", "http://c.grid/_matrix/federation/v1/version", "https://127.0.0.1/_matrix/federation/v1/version", "c.grid:443", "?/_matrix", "_matrix/federation/v1/version"},
	"percent-encoded": {
		"/_matrix/federation/v1/send/a b", "/_matrix/federation/v1/send/a\tb", "/_matrix/federation/v1/send/a HTTP/1.1\r\nHost: c.grid", "/_matrix/federation/v1/send/é",
		"/_matrix/federation/v1/send/a#b", "/_matrix/federation/v1/query/profile?user_id=\x00", "/_matrix/federation/v1/send/\x7f",
	},
}

func TestTargetsRefused(t *testing.T) {
	for why, targets := range notTargets {
		for _, raw := range targets {
			got, err := parseTarget(raw)
			if err == nil {
				t.Errorf("%.100q: taken as %+v", raw, got)
				continue
			}
			if err.StatusCode != http.StatusNotFound || err.ErrCode != "M_UNRECOGNIZED" || !strings.Contains(err.Err, why) {
				t.Errorf("%.100q: %d %v, want %q", raw, err.StatusCode, err, why)
			}
		}
	}
}

func TestTargetOfMostBytes(t *testing.T) {
	raw := "/_matrix/federation/v1/send/"
	raw += strings.Repeat("x", maxTarget-len(raw))
	if _, err := parseTarget(raw); err != nil {
		t.Error(err)
	}
	if _, err := parseTarget(raw + "x"); err == nil || err.StatusCode != http.StatusRequestEntityTooLarge || err.ErrCode != "M_TOO_LARGE" {
		t.Errorf("one byte more: %v", err)
	}
}

func TestMethods(t *testing.T) {
	const federation, server, query, media = "/_matrix/federation/v1/send/1", "/_matrix/key/v2/server", "/_matrix/key/v2/query", "/_matrix/media/v3/download/b.grid/x"
	for method, allowed := range map[string][]string{
		"GET": {federation, server, query, media}, "PUT": {federation}, "POST": {federation, query},
		"DELETE": nil, "HEAD": nil, "OPTIONS": nil, "CONNECT": nil, "TRACE": nil, "get": nil, "": nil,
	} {
		for _, raw := range []string{federation, server, query, media} {
			tg, err := parseTarget(raw)
			if err != nil {
				t.Fatal(err)
			}
			want := false
			for _, a := range allowed {
				want = want || a == raw
			}
			if got := tg.allows(method); got != want {
				t.Errorf("%s %s: %v", method, raw, got)
			}
		}
	}
}

// FuzzTarget: whatever is taken is, to any router, below one of the three prefixes,
// however often it decodes and cleans the path.
func FuzzTarget(f *testing.F) {
	for _, targets := range notTargets {
		for _, raw := range targets {
			f.Add(raw)
		}
	}
	for _, raw := range []string{
		"/_matrix/federation/v1/send/1", "/_matrix/federation/v2/invite/!r:a/$e%2Ff", "/_matrix/key/v2/query/b.grid", "/_matrix/media/v3/download/b.grid/x?y=%2e",
	} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		tg, err := parseTarget(raw)
		if err != nil {
			return
		}
		if tg.raw != raw || tg.endpoint == "" {
			t.Fatalf("%q: %+v", raw, tg)
		}
		u, perr := url.ParseRequestURI(raw)
		if perr != nil || u.Host != "" {
			t.Fatalf("%q: not a path: %v, %v", raw, u, perr)
		}
		p, _, _ := strings.Cut(raw, "?")
		for range 3 {
			clean := path.Clean(p)
			parts := strings.SplitN(clean, "/", 5)
			if len(parts) < 4 || parts[1] != "_matrix" || (parts[2] != "federation" && parts[2] != "key" && parts[2] != "media") {
				t.Fatalf("%q is %q", raw, clean)
			}
			if tg.room != "" && parts[2] != "federation" {
				t.Fatalf("%q is %q", raw, clean)
			}
			var uerr error
			if p, uerr = url.PathUnescape(p); uerr != nil {
				return // no router gets further either
			}
		}
	})
}
