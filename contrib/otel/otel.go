// Package otel is a plugin that makes spans and metrics of OpenTelemetry for the pulls, pushes and streams of
// a peer, in both directions:
//
//	peer := tp.NewPeer(cfg, otel.New())
//
// The names are those of the semantic conventions for RPC, version 1.43: rpc.client.call.duration and
// rpc.server.call.duration in seconds, rpc.system.name, rpc.method, rpc.response.status_code and error.type.
// The trace context goes in the metadata. A call that no route took has the method "_OTHER", and what was
// called is only in the span, as rpc.method_original.
//
// A handler makes spans of its own, and calls of its own, with [Context].
package otel

import (
	"context"
	"log/slog"
	"maps"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/option"
	"github.com/henrylee2cn/teleport/internal/uri"
	"github.com/henrylee2cn/teleport/packet"
)

// scope is the name of the instrumentation.
const scope = "github.com/henrylee2cn/teleport/contrib/otel"

// System is the value of rpc.system.name.
const System = "teleport"

// other is the method of calls that no route took.
const other = "_OTHER"

// Plugin is the plugin. Make it with [New]; it belongs on a peer. All methods are safe for concurrent use.
type Plugin struct {
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
	client     side
	server     side
	link       bool
}

// Option is an option of [New].
type Option func(*config)

type config struct {
	tracers    trace.TracerProvider
	meters     metric.MeterProvider
	propagator propagation.TextMapPropagator
	link       bool
}

// TracerProvider makes the spans; otel.GetTracerProvider without this option.
func TracerProvider(p trace.TracerProvider) Option { return func(c *config) { c.tracers = p } }

// MeterProvider makes the metrics; otel.GetMeterProvider without this option.
func MeterProvider(p metric.MeterProvider) Option { return func(c *config) { c.meters = p } }

// Propagator carries the trace context; without this option the W3C's trace context and baggage.
func Propagator(p propagation.TextMapPropagator) Option { return func(c *config) { c.propagator = p } }

// LinkPushes has the span of a push that came begin a trace of its own, with a link to the span that sent the
// push, in the place of being its child: for broadcasts to very many sessions, whose trace would have as many
// spans.
func LinkPushes() Option { return func(c *config) { c.link = true } }

// New returns the plugin. It panics if an option is nil or the MeterProvider cannot make the histograms.
func New(options ...Option) *Plugin {
	c := config{tracers: otel.GetTracerProvider(), meters: otel.GetMeterProvider(),
		propagator: propagation.NewCompositeTextMapPropagator(propagation.TraceContext{},
			propagation.Baggage{})}
	option.Apply("otel: New", &c, options)
	p := &Plugin{propagator: c.propagator, link: c.link,
		tracer: c.tracers.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL))}
	meter := c.meters.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL))
	histogram := func(name, help string) metric.Float64Histogram {
		h, err := meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(help),
			metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5,
				7.5, 10))
		if err != nil {
			panic("otel: New: " + err.Error())
		}
		return h
	}
	p.client.seconds = histogram("rpc.client.call.duration", "Measures the duration of outgoing calls.")
	p.server.seconds = histogram("rpc.server.call.duration", "Measures the duration of incoming calls.")
	return p
}

// Name returns "otel".
func (p *Plugin) Name() string { return "otel" }

// call is what a call has under callKey.
type call struct {
	ctx   context.Context // with the span, and what came by the metadata
	span  trace.Span
	began time.Time
}

type callKey struct{}

func callOf(ctx tp.Ctx) *call {
	if v, ok := ctx.Public().Load(callKey{}); ok {
		return v.(*call)
	}
	return nil
}

// Context returns the context of the call, with its span, and the baggage that came with it. It ends when
// ctx.Context does. Without the plugin it is that.
func Context(ctx tp.Ctx) context.Context {
	c := callOf(ctx)
	if c == nil {
		return ctx.Context()
	}
	return joined{ctx.Context(), c.ctx}
}

// joined is a context with the values of another.
type joined struct {
	context.Context
	values context.Context
}

func (j joined) Value(key any) any {
	if v := j.Context.Value(key); v != nil {
		return v
	}
	return j.values.Value(key)
}

// maxPath is how many bytes of a path that nothing here has chosen are kept: spans wait for their export.
const maxPath = 256

// pathOf returns the path of a URI, as far as it is kept.
func pathOf(u string) string {
	path := uri.WithoutQuery(u)
	if len(path) > maxPath {
		path = strings.ToValidUTF8(path[:maxPath], "") + "..."
	}
	return path
}

// begin begins the span of what this side sends, and puts its context into the metadata.
func (p *Plugin) begin(ctx tp.WriteCtx, kind trace.SpanKind) {
	h := ctx.Output().Header
	method := pathOf(h.Uri)
	c := &call{began: time.Now()}
	c.ctx, c.span = p.tracer.Start(ctx.Context(), method, p.client.of(outcome{kind, method, 0}).start...)
	meta := maps.Clone(h.Meta) // the program may use its own again
	if meta == nil {
		meta = make(map[string]string)
	}
	p.propagator.Inject(c.ctx, propagation.MapCarrier(meta))
	if len(meta) > 0 {
		h.Meta = meta
	}
	ctx.Public().Store(callKey{}, c)
}

// PreWritePull begins the span of a pull, or of a stream.
func (p *Plugin) PreWritePull(ctx tp.WriteCtx) error {
	p.begin(ctx, trace.SpanKindClient)
	return nil
}

// PostPull ends it.
func (p *Plugin) PostPull(ctx tp.PullCallCtx) error {
	c := callOf(ctx)
	if c == nil { // it has not come so far
		return nil
	}
	code := tp.StatusOK
	x := ctx.Failure()
	if x != nil {
		code = x.Code()
	}
	known := p.client.of(ended(trace.SpanKindClient, pathOf(ctx.Output().Header.Uri), code))
	if c.span.IsRecording() {
		c.span.SetAttributes(known.status...)
		if x != nil {
			c.span.SetStatus(codes.Error, x.Text())
		}
	}
	c.span.End()
	p.client.seconds.Record(c.ctx, time.Since(c.began).Seconds(), known.record...)
	return nil
}

// PreWritePush begins the span of a push.
func (p *Plugin) PreWritePush(ctx tp.WriteCtx) error {
	p.begin(ctx, trace.SpanKindProducer)
	return nil
}

// PostWritePush ends it. The span of a push that was not sent is never ended, so that it is not exported.
func (p *Plugin) PostWritePush(ctx tp.WriteCtx) error {
	if c := callOf(ctx); c != nil {
		c.span.End()
	}
	return nil
}

// PostReadHeader begins the span of a call that came.
func (p *Plugin) PostReadHeader(ctx tp.ReadCtx) error {
	h := ctx.Input().Header
	kind := trace.SpanKindServer
	switch h.Type {
	case packet.TypeReply:
		return nil
	case packet.TypePush:
		kind = trace.SpanKindConsumer
	}
	from := context.Background()
	if len(h.Meta) > 0 {
		from = p.propagator.Extract(from, propagation.MapCarrier(h.Meta))
	}
	options := p.server.of(outcome{kind: kind}).start
	if p.link && h.Type == packet.TypePush {
		options = append(options[:len(options):len(options)], trace.WithNewRoot(),
			trace.WithLinks(trace.LinkFromContext(from)))
	}
	c := &call{began: time.Now()}
	c.ctx, c.span = p.tracer.Start(from, other, options...) // named when the route is known
	ctx.Public().Store(callKey{}, c)
	return nil
}

// PostCall ends it.
func (p *Plugin) PostCall(ctx tp.CallCtx) error {
	c := callOf(ctx)
	if c == nil { // another plugin's PostReadHeader was before this one's, and has refused the call
		return nil
	}
	code, text := ctx.Status()
	method := ctx.Route()
	if method == "" {
		method = other
	}
	known := p.server.of(ended(trace.SpanKindServer, method, code))
	if c.span.IsRecording() {
		c.span.SetName(method)
		c.span.SetAttributes(known.status...)
		c.span.SetAttributes(semconv.RPCMethodKey.String(method))
		if method == other || strings.HasSuffix(method, "*") { // which do not say what was called
			c.span.SetAttributes(semconv.RPCMethodOriginalKey.String(pathOf(ctx.Input().Header.Uri)))
		}
		if code >= 500 { // others are the caller's
			c.span.SetStatus(codes.Error, text)
		}
	}
	c.span.End()
	p.server.seconds.Record(c.ctx, time.Since(c.began).Seconds(), known.record...)
	return nil
}

// Handler returns a handler that adds trace_id and span_id to lines that are written with a context that has
// a span, see [Context].
func Handler(h slog.Handler) slog.Handler { return handler{h} }

type handler struct{ slog.Handler }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		r = r.Clone()
		r.AddAttrs(slog.String("trace_id", span.TraceID().String()), slog.String("span_id",
			span.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs)}
}

func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name)} }
