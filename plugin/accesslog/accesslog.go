// Package accesslog is a plugin that writes one structured line for each pull, push and stream that comes, by
// log/slog:
//
//	peer := tp.NewPeer(cfg, accesslog.New(slog.Default(), accesslog.Sample(0.01)))
//
// A line is written when the call is over: a pull or a stream when its reply was handed to the connection, a
// push when its handler has returned. The line has the kind of the call, its path, the status and its text,
// how long the call took, the lengths of what came and of what was answered, the session and the remote
// address. What the other side has sent is shown only where that was asked for: see [Query] and [Meta].
package accesslog

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/option"
	"github.com/henrylee2cn/teleport/internal/uri"
	"github.com/henrylee2cn/teleport/packet"
)

// Redacted stands in the place of what is not shown.
const Redacted = "[redacted]"

// maxText is how many bytes of one text that the other side has sent are shown.
const maxText = 256

// Log is the plugin. Make it with [New]. All methods are safe for concurrent use.
type Log struct {
	log    *slog.Logger
	sample float64
	slow   time.Duration
	who    func(tp.Ctx) string
	query  []string
	meta   []string
	redact func(key, value string) string
}

// Option is an option of [New].
type Option func(*Log)

// Sample has a line written for this part of the calls, from 0 to 1. Calls that fail, and those that are
// slow, are written in any case; see [Slow].
func Sample(part float64) Option {
	if !(part >= 0 && part <= 1) {
		panic(fmt.Sprintf("accesslog: Sample: %v is not between 0 and 1.", part))
	}
	return func(l *Log) { l.sample = part }
}

// Slow has lines of calls that take as long as d, or longer, written in any case, and at the level Warn.
// Streams are never slow.
func Slow(d time.Duration) Option {
	if d <= 0 {
		panic(fmt.Sprintf("accesslog: Slow: %v is not positive.", d))
	}
	return func(l *Log) { l.slow = d }
}

// Who adds who calls, for example by the plugin auth:
//
//	accesslog.Who(auth.Name)
func Who(who func(ctx tp.Ctx) string) Option { return func(l *Log) { l.who = who } }

// Query shows the values of these keys of the URI's query, and of the others that they are there. Without the
// option no query is shown. Query("*") shows all.
func Query(keys ...string) Option {
	return func(l *Log) { l.query = append([]string{}, keys...) }
}

// Meta shows the metadata with these keys.
func Meta(keys ...string) Option { return func(l *Log) { l.meta = slices.Clone(keys) } }

// Redact changes what is shown: it is called with each key of a query or of metadata that is shown, and its
// value, and returns the value to show.
func Redact(change func(key, value string) string) Option { return func(l *Log) { l.redact = change } }

// New returns the plugin. It belongs on a peer, where it sees all that comes, or on a group or a
// registration, where it sees what has come so far as to be routed there. Nil is for slog.Default.
func New(log *slog.Logger, options ...Option) *Log {
	if log == nil {
		log = slog.Default()
	}
	l := &Log{log: log, sample: 1}
	option.Apply("accesslog: New", l, options)
	return l
}

// Name returns "accesslog".
func (l *Log) Name() string { return "accesslog" }

// began is the key under which a call keeps when it came.
type began struct{}

// PostReadHeader notes when a call came.
func (l *Log) PostReadHeader(ctx tp.ReadCtx) error {
	if ctx.Input().Header.Type != packet.TypeReply {
		ctx.Public().Store(began{}, time.Now())
	}
	return nil
}

// chosen reports whether a call that is neither slow nor has failed is written.
func (l *Log) chosen() bool { return l.sample == 1 || l.sample > 0 && rand.Float64() < l.sample }

// PostCall writes the line of a call that is over.
func (l *Log) PostCall(ctx tp.CallCtx) error {
	in, out := ctx.Input(), ctx.Output()
	code, text := ctx.Status()
	var took time.Duration
	if at, ok := ctx.Public().Load(began{}); ok {
		took = time.Since(at.(time.Time))
	}
	kind, lasts, replied := "pull", false, true
	switch in.Header.Type {
	case packet.TypeOpen:
		kind, lasts = "stream", true
	case packet.TypePush:
		kind, replied = "push", false
	}
	slow := l.slow > 0 && took >= l.slow && !lasts
	failed := code != tp.StatusOK
	if !slow && !failed && !l.chosen() {
		return nil
	}
	level := slog.LevelInfo
	if slow || failed && code >= 500 {
		level = slog.LevelWarn
	}
	attrs := append(make([]slog.Attr, 0, 5), slog.Int("status", int(code)), slog.Duration("took", took),
		slog.Int64("in", in.Length))
	if replied {
		attrs = append(attrs, slog.Int64("out", out.Length))
	}
	if failed {
		attrs = append(attrs, slog.String("text", clip(text)))
	}
	l.write(ctx, level, kind, in.Header, attrs...)
	return nil
}

// write writes a line.
func (l *Log) write(ctx tp.Ctx, level slog.Level, kind string, h *packet.Header, attrs ...slog.Attr) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	path := uri.WithoutQuery(h.Uri)
	_, query, has := strings.Cut(h.Uri, "?")
	line := append(make([]slog.Attr, 0, 12), slog.String("kind", kind), slog.String("path", clip(path)))
	line = append(line, attrs...)
	line = append(line, slog.String("session", clip(ctx.Session().Id())), slog.String("remote", ctx.Ip()))
	if l.who != nil {
		line = append(line, slog.String("who", clip(l.who(ctx))))
	}
	if has && l.query != nil {
		line = append(line, slog.Any("query", slog.GroupValue(l.pairs(query)...)))
	}
	for _, key := range l.meta {
		if value, ok := h.Meta[key]; ok {
			line = append(line, slog.String("meta."+key, l.shown(key, value)))
		}
	}
	l.log.LogAttrs(context.Background(), level, "call", line...)
}

// pairs are those of a query.
func (l *Log) pairs(query string) (attrs []slog.Attr) {
	values, _ := url.ParseQuery(query) // pairs that are malformed are left out
	keys := make([]string, 0, len(values))
	for key := range values {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys[:min(len(keys), 32)] {
		value := Redacted
		if slices.Contains(l.query, key) || slices.Contains(l.query, "*") {
			value = l.shown(key, strings.Join(values[key], ","))
		}
		attrs = append(attrs, slog.String(clip(key), value))
	}
	return attrs
}

func (l *Log) shown(key, value string) string {
	if l.redact != nil {
		value = l.redact(key, value)
	}
	return clip(value)
}

// clip returns the text, or as much of its beginning as is shown.
func clip(text string) string {
	if len(text) <= maxText {
		return text
	}
	n := maxText
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + "..."
}
