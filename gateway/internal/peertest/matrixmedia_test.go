package peertest

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
)

// Whatever differs from what was uploaded is an error.
func TestDownloadRandom(t *testing.T) {
	const size = 150_000
	m := &Media{URI: id.ContentURI{Homeserver: "a.grid", FileID: "x"}, Size: size, seed: [32]byte{1}}
	good, err := io.ReadAll(m.content())
	if err != nil || len(good) != size {
		t.Fatal(len(good), err)
	}
	flipped := bytes.Clone(good)
	flipped[size-1] ^= 1
	for name, c := range map[string]struct {
		body []byte
		want string // in the error; "": none
	}{
		"good":  {good, ""},
		"short": {good[:size-1], "149999 bytes, want 150000"},
		"empty": {nil, "0 bytes, want 150000"},
		"long":  {append(bytes.Clone(good), 0), "or more, from byte 131072"},
		"other": {flipped, "other content"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/_matrix/client/v1/media/download/a.grid/x" {
				t.Errorf("%s: asked for %s", name, r.URL)
			}
			_, _ = w.Write(c.body)
		}))
		client, err := newMautrix(srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = (&MatrixClient{Client: client}).DownloadRandom(t.Context(), m)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		client.Client.CloseIdleConnections()
		srv.Close()
	}
}
