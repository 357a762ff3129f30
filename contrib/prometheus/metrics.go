// Package prometheus is a plugin that counts what a peer does, for Prometheus:
//
//	metrics := prometheus.New()
//	peer := tp.NewPeer(cfg, metrics)
//	registry.MustRegister(metrics)
//
// Every series has a bound: calls are counted by the route that was registered, those that no route took
// under the one label "none", and by a status of a few hundred; never by an address, a session, or a URI that
// the other side has chosen.
package prometheus

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/packet"
)

// Metrics is the plugin, and a collector. Make it with [New]; it belongs on a peer, or on several. All
// methods are safe for concurrent use.
type Metrics struct {
	calls, inBytes, outBytes *prometheus.CounterVec
	seconds                  *prometheus.HistogramVec
	running                  *prometheus.GaugeVec
	streams                  prometheus.Gauge
	limited                  *prometheus.CounterVec
	dropped                  prometheus.Counter
	connects, redials        prometheus.Counter
	disconnects              prometheus.Counter
	made                     *prometheus.CounterVec
	sessions                 *prometheus.Desc
	backlog                  *prometheus.Desc
	all                      []prometheus.Collector

	mu    sync.Mutex // guards peers
	peers map[*tp.Peer]bool
}

// Option is an option of [New].
type Option func(*options)

type options struct {
	namespace string
	labels    prometheus.Labels
	buckets   []float64
}

// Namespace changes the beginning of the metrics' names, which is "teleport".
func Namespace(name string) Option { return func(o *options) { o.namespace = name } }

// Labels adds constant labels, for a program with several peers that are to be told apart: a Metrics for
// each.
func Labels(labels prometheus.Labels) Option { return func(o *options) { o.labels = labels } }

// Buckets changes the bounds, in seconds, of the classic histogram of durations. The native histogram beside
// that has none.
func Buckets(seconds ...float64) Option { return func(o *options) { o.buckets = seconds } }

// New returns the plugin.
func New(opts ...Option) *Metrics {
	o := options{namespace: "teleport", buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01,
		.025, .05,
		.1, .25, .5, 1, 2.5, 5, 10}}
	for _, opt := range opts {
		opt(&o)
	}
	m := &Metrics{peers: make(map[*tp.Peer]bool)}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: o.namespace, Name: name, Help: help,
			ConstLabels: o.labels}, labels)
		m.all = append(m.all, c)
		return c
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: o.namespace, Name: name, Help: help,
			ConstLabels: o.labels})
		m.all = append(m.all, c)
		return c
	}
	m.calls = counters("calls_total", "Calls that came and are over, by kind, route and status.", "kind",
		"route",
		"status")
	m.inBytes = counters("received_bytes_total", "Bytes of headers and bodies of calls that came.", "kind",
		"route")
	m.outBytes = counters("sent_bytes_total", "Bytes of headers and bodies of replies.", "kind", "route")
	m.limited = counters("limited_total", "Calls that were refused with the status 429.", "kind", "route")
	m.dropped = counter("pushes_dropped_total", "Pushes that were not handled, whatever the reason.")
	m.connects = counter("connections_total", "Connections of sessions, dialled and accepted.")
	m.redials = counter("redials_total", "Connections that sessions got after they had lost one.")
	m.disconnects = counter("disconnects_total", "Connections that sessions have lost, whoever wanted that.")
	m.made = counters("made_total", "Pulls and pushes that were sent.", "kind")
	m.seconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: o.namespace,
		Name:        "call_duration_seconds",
		Help:        "From when a pull's header was read until its reply was handed over.",
		ConstLabels: o.labels, Buckets: o.buckets, NativeHistogramBucketFactor: 1.1,
		NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour}, []string{"route"})
	m.running = prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: o.namespace, Name: "calls_running",
		Help: "Calls that have come and are not over.", ConstLabels: o.labels}, []string{"kind"})
	m.streams = prometheus.NewGauge(prometheus.GaugeOpts{Namespace: o.namespace, Name: "streams_open",
		Help: "Streams that the other sides have opened.", ConstLabels: o.labels})
	m.all = append(m.all, m.seconds, m.running, m.streams)
	m.sessions = prometheus.NewDesc(prometheus.BuildFQName(o.namespace, "", "sessions"), "Live sessions.",
		nil, o.labels)
	m.backlog = prometheus.NewDesc(prometheus.BuildFQName(o.namespace, "", "output_waiting_bytes"),
		"Bytes that wait to be written, of all sessions.", nil, o.labels)
	return m
}

// Name returns "prometheus".
func (m *Metrics) Name() string { return "prometheus" }

// Describe is of [prometheus.Collector].
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all {
		c.Describe(ch)
	}
	ch <- m.sessions
	ch <- m.backlog
}

// Collect is of [prometheus.Collector].
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all {
		c.Collect(ch)
	}
	m.mu.Lock()
	peers := make([]*tp.Peer, 0, len(m.peers))
	for p := range m.peers {
		peers = append(peers, p)
	}
	m.mu.Unlock()
	var sessions, backlog float64
	for _, p := range peers {
		p.RangeSession(func(s *tp.Session) bool {
			sessions++
			backlog += float64(s.Socket().Backlog())
			return true
		})
	}
	ch <- prometheus.MustNewConstMetric(m.sessions, prometheus.GaugeValue, sessions)
	ch <- prometheus.MustNewConstMetric(m.backlog, prometheus.GaugeValue, backlog)
}

func (m *Metrics) know(p *tp.Peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peers[p] = true
}

// PostAccept counts a connection.
func (m *Metrics) PostAccept(fore tp.ForeSession) error {
	m.know(fore.Peer())
	m.connects.Inc()
	return nil
}

// PostConnect counts a connection.
func (m *Metrics) PostConnect(sess *tp.Session) error {
	m.know(sess.Peer())
	m.connects.Inc()
	return nil
}

// PostReconnect counts a connection after the first.
func (m *Metrics) PostReconnect(*tp.Session) error {
	m.redials.Inc()
	return nil
}

// PostDisconnect counts a connection that was lost.
func (m *Metrics) PostDisconnect(*tp.Session, error) error {
	m.disconnects.Inc()
	return nil
}

// PostWritePull counts a pull that was sent.
func (m *Metrics) PostWritePull(tp.WriteCtx) error {
	m.made.WithLabelValues("pull").Inc()
	return nil
}

// PostWritePush counts a push that was sent.
func (m *Metrics) PostWritePush(tp.WriteCtx) error {
	m.made.WithLabelValues("push").Inc()
	return nil
}

// began is the key under which a call keeps when it came.
type began struct{}

func kindOf(typ int32) string {
	switch typ {
	case packet.TypePush:
		return "push"
	case packet.TypeOpen:
		return "stream"
	}
	return "pull"
}

// PostReadHeader counts a call that has come.
func (m *Metrics) PostReadHeader(ctx tp.ReadCtx) error {
	typ := ctx.Input().Header.Type
	if typ == packet.TypeReply {
		return nil
	}
	ctx.Public().Store(began{}, time.Now())
	if typ == packet.TypeOpen {
		m.streams.Inc()
	} else {
		m.running.WithLabelValues(kindOf(typ)).Inc()
	}
	return nil
}

// PostCall counts a call that is over.
func (m *Metrics) PostCall(ctx tp.CallCtx) error {
	at, ok := ctx.Public().Load(began{})
	if !ok { // another plugin's PostReadHeader was before this one's, and has refused the call
		at = time.Now()
	}
	in := ctx.Input()
	kind, route := kindOf(in.Header.Type), ctx.Route()
	if route == "" {
		route = "none"
	}
	code, _ := ctx.Status()
	switch {
	case !ok:
	case kind == "stream":
		m.streams.Dec()
	default:
		m.running.WithLabelValues(kind).Dec()
	}
	m.calls.WithLabelValues(kind, route, status(code)).Inc()
	m.inBytes.WithLabelValues(kind, route).Add(float64(in.Length))
	if kind == "push" {
		if code != tp.StatusOK {
			m.dropped.Inc()
		}
	} else {
		m.outBytes.WithLabelValues(kind, route).Add(float64(ctx.Output().Length))
	}
	if code == tp.StatusOverloaded {
		m.limited.WithLabelValues(kind, route).Inc()
	}
	if kind == "pull" && ok {
		m.seconds.WithLabelValues(route).Observe(time.Since(at.(time.Time)).Seconds())
	}
	return nil
}

// status returns the label of a code. Handlers may make codes of their own, from input even: those from 1000
// on, and below 100, are one.
func status(code int32) string {
	if code < 100 || code >= 1000 {
		return "other"
	}
	return strconv.Itoa(int(code))
}
