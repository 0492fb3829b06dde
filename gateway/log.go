package gateway

import (
	"io"
	"log/slog"

	"github.com/yggate/yggate/gateway/config"
)

// NewLogger returns the logger that the configuration asks for. Every part uses
// the same keys: peer, domain, proto, transport, dir, id; and never a body.
func NewLogger(w io.Writer, c config.Log) *slog.Logger {
	level := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}[c.Level]
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
