package otel_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/otel"
)

// system is two peers with the plugin, and what they have exported.
type system struct {
	srv, cli *tp.Peer
	sess     *tp.Session
	spans    *tracetest.InMemoryExporter
	reader   *sdkmetric.ManualReader
	tracers  *sdktrace.TracerProvider
}

func newSystem(t testing.TB, options ...otel.Option) *system {
	s := &system{spans: tracetest.NewInMemoryExporter(), reader: sdkmetric.NewManualReader()}
	s.tracers = sdktrace.NewTracerProvider(sdktrace.WithSyncer(s.spans))
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(s.reader))
	options = append([]otel.Option{otel.TracerProvider(s.tracers), otel.MeterProvider(meters)}, options...)
	s.srv, s.cli = tp.NewPeer(nil, otel.New(options...)), tp.NewPeer(nil, otel.New(options...))
	t.Cleanup(func() { s.cli.Close(); s.srv.Close() })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go s.srv.Serve(ln)
	s.sess, err = s.cli.Dial(ln.Addr().String())
	require.NoError(t, err)
	return s
}

// await returns n spans, when they have ended, by their kind and name.
func (s *system) await(t *testing.T, n int) map[string]tracetest.SpanStub {
	t.Helper()
	require.Eventually(t, func() bool { return len(s.spans.GetSpans()) >= n }, 20*time.Second,
		time.Millisecond)
	all := make(map[string]tracetest.SpanStub)
	for _, span := range s.spans.GetSpans() {
		all[span.SpanKind.String()+" "+span.Name] = span
	}
	require.Len(t, s.spans.GetSpans(), n)
	s.spans.Reset()
	return all
}

func attrs(span tracetest.SpanStub) string {
	var list []string
	for _, a := range span.Attributes {
		list = append(list, string(a.Key)+"="+a.Value.String())
	}
	slices.Sort(list)
	return fmt.Sprint(list)
}

// A pull has a span on either side, one below the other, and so has what its handler does.
func TestPull(t *testing.T) {
	s := newSystem(t)
	tp.HandlePull(s.srv.PullRouter, "/outer", func(ctx tp.PullCtx, _ *string) (string, tp.Xerror) {
		c := otel.Context(ctx)
		_, span := s.tracers.Tracer("handler").Start(c, "own")
		span.End()
		return baggage.FromContext(c).Member("who").Value(), ctx.Session().PullContext(c, "/inner", "",
			nil).Xerror
	})
	tp.HandlePull(s.cli.PullRouter, "/inner", func(tp.PullCtx, *string) (string, tp.Xerror) {
		return "", nil
	})
	member, err := baggage.NewMember("who", "ann")
	require.NoError(t, err)
	bag, err := baggage.New(member)
	require.NoError(t, err)
	ctx, root := s.tracers.Tracer("test").Start(baggage.ContextWithBaggage(t.Context(), bag), "root")
	meta := map[string]string{"own": "x"}
	got, err := tp.Call[string](ctx, s.sess, "/outer?a=1", "", tp.WithMeta("own", meta["own"]))
	require.NoError(t, err)
	require.Equal(t, "ann", got)
	root.End()
	spans := s.await(t, 6)
	client, server := spans["client /outer"], spans["server /outer"]
	back, inner := spans["client /inner"], spans["server /inner"]
	for _, span := range spans {
		require.Equal(t, root.SpanContext().TraceID(), span.SpanContext.TraceID(), span.Name)
	}
	require.Equal(t, root.SpanContext().SpanID(), client.Parent.SpanID())
	require.Equal(t, client.SpanContext.SpanID(), server.Parent.SpanID())
	require.Equal(t, server.SpanContext.SpanID(), spans["internal own"].Parent.SpanID())
	require.Equal(t, server.SpanContext.SpanID(), back.Parent.SpanID())
	require.Equal(t, back.SpanContext.SpanID(), inner.Parent.SpanID())
	const want = "[rpc.method=/outer rpc.response.status_code=200 rpc.system.name=teleport]"
	require.Equal(t, want, attrs(client))
	require.Equal(t, want, attrs(server))
	require.Equal(t, codes.Unset, server.Status.Code)
}

// Whatever becomes of a call, its spans end, and say so.
func TestFailures(t *testing.T) {
	s := newSystem(t)
	tp.HandlePull(s.srv.PullRouter, "/no", func(_ tp.PullCtx, code *int32) (string, tp.Xerror) {
		return "", tp.NewXerror(*code, "no")
	})
	s.srv.PullRouter.Group("any").SetUnknown(func(tp.UnknownPullCtx, *[]byte) (any, tp.Xerror) {
		return nil,
			nil
	})
	for _, c := range []struct {
		uri            string
		code           int32
		client, server string
		status         codes.Code
	}{
		{"/no", 404, "error.type=404 rpc.method=/no rpc.response.status_code=404",
			"error.type=404 rpc.method=/no rpc.response.status_code=404", codes.Unset},
		{"/no", 777, "error.type=777 rpc.method=/no rpc.response.status_code=777",
			"error.type=777 rpc.method=/no rpc.response.status_code=777", codes.Error},
		{"/no", 5000, "error.type=_OTHER rpc.method=/no rpc.response.status_code=_OTHER",
			"error.type=_OTHER rpc.method=/no rpc.response.status_code=_OTHER", codes.Error},
		{"/no", 0, "error.type=_OTHER rpc.method=/no rpc.response.status_code=_OTHER",
			"error.type=_OTHER rpc.method=/no rpc.response.status_code=_OTHER", codes.Unset},
		{"/nosuch/7", 0, "error.type=404 rpc.method=/nosuch/7 rpc.response.status_code=404",
			"error.type=404 rpc.method=_OTHER rpc.method_original=/nosuch/7 rpc.response.status_code=404",
			codes.Unset},
		{"/any/7", 0, "rpc.method=/any/7 rpc.response.status_code=200",
			"rpc.method=/any/* rpc.method_original=/any/7 rpc.response.status_code=200", codes.Unset},
	} {
		_ = s.sess.Pull(c.uri, c.code, nil)
		for name, span := range s.await(t, 2) {
			want, status := c.client, codes.Error
			if span.SpanKind == trace.SpanKindServer {
				want, status = c.server, c.status
			} else if c.uri == "/any/7" {
				status = codes.Unset
			}
			require.Equal(t, "["+want+" rpc.system.name=teleport]", attrs(span), name)
			require.Equal(t, status, span.Status.Code, name)
		}
	}
	require.NoError(t, s.sess.Close())
	_ = s.sess.Pull("/no", 1, nil)
	require.Contains(t, attrs(s.await(t, 1)["client /no"]), "error.type=101")
}

// Pushes and streams have spans; a push's can be a trace of its own with a link.
func TestPushesAndStreams(t *testing.T) {
	for _, link := range []bool{false, true} {
		var options []otel.Option
		if link {
			options = append(options, otel.LinkPushes())
		}
		s := newSystem(t, options...)
		tp.HandlePush(s.srv.PushRouter, "/note", func(tp.PushCtx, *string) {})
		tp.HandleStream(s.srv.PullRouter, "/s", func(_ tp.PullCtx, st *tp.Stream[string, string]) tp.Xerror {
			_, _ = st.Recv()
			return nil
		})
		ctx, root := s.tracers.Tracer("test").Start(t.Context(), "broadcast")
		for range 2 {
			require.Nil(t, s.sess.PushContext(ctx, "/note", "x"))
		}
		root.End()
		require.Eventually(t, func() bool { return len(s.spans.GetSpans()) == 5 }, 20*time.Second,
			time.Millisecond)
		for _, span := range s.spans.GetSpans() {
			if span.SpanKind != trace.SpanKindConsumer {
				require.Equal(t, root.SpanContext().TraceID(), span.SpanContext.TraceID())
				continue
			}
			if link {
				require.NotEqual(t, root.SpanContext().TraceID(), span.SpanContext.TraceID())
				require.Len(t, span.Links, 1)
				require.Equal(t, root.SpanContext().TraceID(), span.Links[0].SpanContext.TraceID())
			} else {
				require.Equal(t, root.SpanContext().TraceID(), span.SpanContext.TraceID())
			}
		}
		s.spans.Reset()
		st, err := tp.OpenStream[string, string](t.Context(), s.sess, "/s")
		require.NoError(t, err)
		require.NoError(t, st.CloseSend())
		_, err = st.Recv()
		require.Equal(t, io.EOF, err)
		spans := s.await(t, 2)
		require.Equal(t, spans["client /s"].SpanContext.SpanID(), spans["server /s"].Parent.SpanID())
	}
}

// The durations are there, by method and status, and strangers add no series.
func TestMetrics(t *testing.T) {
	s := newSystem(t)
	tp.HandlePull(s.srv.PullRouter, "/ok", func(tp.PullCtx, *string) (string, tp.Xerror) { return "", nil })
	for i := range 50 {
		require.Nil(t, s.sess.Pull("/ok", "", nil).Xerror)
		require.NotNil(t, s.sess.Pull(fmt.Sprintf("/nosuch/%d", i), "", nil).Xerror)
	}
	s.await(t, 200)
	var data metricdata.ResourceMetrics
	require.NoError(t, s.reader.Collect(t.Context(), &data))
	counts := make(map[string]uint64)
	for _, m := range data.ScopeMetrics[0].Metrics {
		require.Equal(t, "s", m.Unit)
		for _, p := range m.Data.(metricdata.Histogram[float64]).DataPoints {
			method, _ := p.Attributes.Value(attribute.Key("rpc.method"))
			counts[m.Name+" "+method.AsString()] += p.Count
		}
	}
	require.EqualValues(t, 50, counts["rpc.server.call.duration /ok"])
	require.EqualValues(t, 50, counts["rpc.server.call.duration _OTHER"])
	require.EqualValues(t, 50, counts["rpc.client.call.duration /ok"])
	require.NotContains(t, counts, "rpc.server.call.duration /nosuch/1")
}

// Paths without an end, as a proxy calls them, make no series without an end, and long ones are cut.
func TestManyPaths(t *testing.T) {
	s := newSystem(t)
	for i := range 3000 {
		require.NotNil(t, s.sess.Pull(fmt.Sprintf("/no/%d", i), "", nil).Xerror)
	}
	require.NotNil(t, s.sess.Pull("/"+strings.Repeat("x", 10_000), "", nil).Xerror)
	s.spans.Reset()
	require.NotNil(t, s.sess.Pull("/"+strings.Repeat("x", 10_000), "", nil).Xerror)
	for name, span := range s.await(t, 2) {
		require.Less(t, len(name)+len(attrs(span)), 1000)
	}
	var data metricdata.ResourceMetrics
	require.NoError(t, s.reader.Collect(t.Context(), &data))
	for _, m := range data.ScopeMetrics[0].Metrics {
		require.LessOrEqual(t, len(m.Data.(metricdata.Histogram[float64]).DataPoints), 1001)
	}
}

// A collector that is away costs calls nothing: spans are dropped, and the plugin waits for nobody.
func TestCollectorAway(t *testing.T) {
	away := &away{release: make(chan struct{})}
	tracers := sdktrace.NewTracerProvider(sdktrace.WithBatcher(away, sdktrace.WithMaxQueueSize(16),
		sdktrace.WithMaxExportBatchSize(4), sdktrace.WithBatchTimeout(time.Millisecond)))
	s := newSystem(t, otel.TracerProvider(tracers))
	tp.HandlePull(s.srv.PullRouter, "/ok", func(tp.PullCtx, *string) (string, tp.Xerror) { return "", nil })
	for range 1000 {
		require.Nil(t, s.sess.Pull("/ok", "", nil).Xerror)
	}
	close(away.release)
	require.NoError(t, tracers.Shutdown(t.Context()))
	require.Less(t, away.spans, 500, "what did not fit into the queue was dropped")
	require.Positive(t, away.spans)
}

// away is an exporter whose collector does not answer until it is released.
type away struct {
	release chan struct{}
	spans   int
}

func (a *away) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	<-a.release
	a.spans += len(spans)
	return nil
}

func (a *away) Shutdown(context.Context) error { return nil }

// Lines of the log say which span they are of.
func TestHandler(t *testing.T) {
	s := newSystem(t)
	var out bytes.Buffer
	log := slog.New(otel.Handler(slog.NewTextHandler(&out, nil))).With("a", 1).WithGroup("g")
	ctx, span := s.tracers.Tracer("test").Start(t.Context(), "x")
	log.InfoContext(ctx, "hello")
	log.InfoContext(context.Background(), "without")
	require.Contains(t, out.String(), "trace_id="+span.SpanContext().TraceID().String())
	require.Equal(t, 1, bytes.Count(out.Bytes(), []byte("span_id=")))
}

// BenchmarkCall measures what the plugin adds to a call, both sides, with spans that nobody samples.
func BenchmarkCall(b *testing.B) {
	for _, with := range []bool{false, true} {
		b.Run(fmt.Sprintf("plugin=%v", with), func(b *testing.B) {
			var plugins []tp.Plugin
			if with {
				plugins = append(plugins, otel.New(otel.TracerProvider(sdktrace.NewTracerProvider(
					sdktrace.WithSampler(sdktrace.NeverSample())))))
			}
			srv, cli := tp.NewPeer(nil, plugins...), tp.NewPeer(nil, plugins...)
			defer srv.Close()
			defer cli.Close()
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(b, err)
			go srv.Serve(ln)
			tp.HandlePull(srv.PullRouter, "/ok", func(_ tp.PullCtx, s *string) (string, tp.Xerror) {
				return *s, nil
			})
			sess, err := cli.Dial(ln.Addr().String())
			require.NoError(b, err)
			b.ReportAllocs()
			for b.Loop() {
				if x := sess.Pull("/ok", "x", nil).Xerror; x != nil {
					b.Fatal(x)
				}
			}
		})
	}
}

// A pull, and what its handler knows of it.
func Example() {
	tracers := sdktrace.NewTracerProvider() // with exporters, in a program
	plugin := func() tp.Plugin { return otel.New(otel.TracerProvider(tracers)) }
	srv, cli := tp.NewPeer(nil, plugin()), tp.NewPeer(nil, plugin())
	defer srv.Close()
	defer cli.Close()
	tp.HandlePull(srv.PullRouter, "/trace", func(ctx tp.PullCtx, _ *struct{}) (string, tp.Xerror) {
		return trace.SpanContextFromContext(otel.Context(ctx)).TraceID().String(), nil
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	go srv.Serve(ln)
	sess, err := cli.Dial(ln.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, span := tracers.Tracer("example").Start(context.Background(), "request")
	defer span.End()
	id, err := tp.Call[string](ctx, sess, "/trace", struct{}{})
	fmt.Println(id == span.SpanContext().TraceID().String(), err)
	// Output: true <nil>
}
