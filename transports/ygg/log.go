package ygg

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
)

// coreLog lets core and multicast log to slog. Their news of peerings goes to
// links and is at debug level here: the node itself reports those, with fields.
type coreLog struct {
	log   *slog.Logger
	links *links
}

func (l coreLog) print(level slog.Level, format string, args []any) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	msg := format
	if format == "" {
		msg = fmt.Sprintln(args...)
	} else {
		msg = fmt.Sprintf(format, args...)
	}
	l.log.Log(context.Background(), level, strings.TrimSpace(msg))
}

func (l coreLog) Printf(f string, a ...any) { l.print(slog.LevelDebug, f, a) }
func (l coreLog) Println(a ...any)          { l.print(slog.LevelDebug, "", a) }
func (l coreLog) Infof(f string, a ...any) {
	l.links.logged(f, a)
	l.print(slog.LevelDebug, f, a)
}
func (l coreLog) Infoln(a ...any)           { l.print(slog.LevelDebug, "", a) }
func (l coreLog) Warnf(f string, a ...any)  { l.print(slog.LevelWarn, f, a) }
func (l coreLog) Warnln(a ...any)           { l.print(slog.LevelWarn, "", a) }
func (l coreLog) Errorf(f string, a ...any) { l.print(slog.LevelError, f, a) }
func (l coreLog) Errorln(a ...any)          { l.print(slog.LevelError, "", a) }
func (l coreLog) Debugf(f string, a ...any) { l.print(slog.LevelDebug, f, a) }
func (l coreLog) Debugln(a ...any)          { l.print(slog.LevelDebug, "", a) }
func (l coreLog) Traceln(...any)            {}
