package peertest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// Media is random content on a media server. It is known by its seed, so that
// sizes beyond the memory can be compared.
type Media struct {
	URI  id.ContentURI
	Size int64 // bytes
	seed [32]byte
}

func (m *Media) content() io.Reader { return io.LimitReader(rand.NewChaCha8(m.seed), m.Size) }

// UploadRandom uploads size bytes of new random content, without holding them in
// memory (client-server API §11.7.3).
func (c *MatrixClient) UploadRandom(ctx context.Context, size int64) (*Media, error) {
	m := &Media{Size: size}
	for i := range m.seed {
		m.seed[i] = byte(rand.Uint32())
	}
	answer, err := c.UploadMedia(ctx, mautrix.ReqUploadMedia{
		Content: m.content(), ContentLength: size, ContentType: "application/octet-stream", FileName: "random.bin",
	})
	if err != nil {
		return nil, fmt.Errorf("upload %d bytes as %s: %w", size, c.UserID, err)
	}
	m.URI = answer.ContentURI
	return m, nil
}

// DownloadRandom downloads what UploadRandom uploaded, by the authenticated way,
// and compares each byte as it comes.
func (c *MatrixClient) DownloadRandom(ctx context.Context, m *Media) error {
	if err := c.downloadRandom(ctx, m); err != nil {
		return fmt.Errorf("download %s as %s: %w", m.URI, c.UserID, err)
	}
	return nil
}

func (c *MatrixClient) downloadRandom(ctx context.Context, m *Media) error {
	resp, err := c.Download(ctx, m.URI)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	want := m.content()
	have, wanted := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		n, err := io.ReadFull(resp.Body, have)
		if k, _ := io.ReadFull(want, wanted[:n]); k != n || !bytes.Equal(have[:n], wanted[:n]) {
			return fmt.Errorf("other content, or more, from byte %d on", at)
		}
		at += int64(n)
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			if at != m.Size {
				return fmt.Errorf("%d bytes, want %d", at, m.Size)
			}
			return nil
		case err != nil:
			return err
		}
	}
}
