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
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/option"
	"github.com/henrylee2cn/teleport/internal/weakset"
)

// Metrics is the plugin, and a collector. Make it with [New]; it belongs on a peer, or on several. All
// methods are safe for concurrent use.
type Metrics struct {
	server, client *direction
	waiting        map[string]prometheus.Gauge // by kind
	inBytes        *prometheus.CounterVec
	outBytes       *prometheus.CounterVec
	limited        *prometheus.CounterVec
	dropped        prometheus.Counter
	connects       prometheus.Counter
	redials        prometheus.Counter
	disconnects    prometheus.Counter
	sessions       *prometheus.Desc
	backlog        *prometheus.Desc
	all            []prometheus.Collector
	clientRoute    func(path string) string
	peers          weakset.Set[tp.Peer]
}

// Option is an option of [New].
type Option func(*options)

type options struct {
	namespace string
	labels    prometheus.Labels
	buckets   []float64
	route     func(path string) string
}

// Namespace changes the beginning of the metrics' names, which is "teleport".
func Namespace(name string) Option { return func(o *options) { o.namespace = name } }

// Labels adds constant labels, for a program with several peers that are to be told apart: a Metrics for
// each.
func Labels(labels prometheus.Labels) Option { return func(o *options) { o.labels = labels } }

// Buckets changes the bounds, in seconds, of the classic histogram of durations. The native histogram beside
// that has none.
func Buckets(seconds ...float64) Option {
	if !slices.IsSorted(seconds) || len(slices.Compact(slices.Clone(seconds))) != len(seconds) ||
		len(seconds) == 0 {
		panic(fmt.Sprintf("prometheus: Buckets(%v): expected bounds in increasing order.", seconds))
	}
	return func(o *options) { o.buckets = slices.Clone(seconds) }
}

// ClientRoutes has what this side calls counted by a route, which the function returns for a path, in the
// place of all under the one label "any". There must be few of them: a path with numbers in it makes as many
// series as there are numbers, and what a proxy calls was chosen by strangers. The function is called by many
// goroutines.
func ClientRoutes(of func(path string) string) Option {
	if of == nil {
		panic("prometheus: ClientRoutes: the function is nil.")
	}
	return func(o *options) { o.route = of }
}

// New returns the plugin. It belongs behind plugins that refuse connections, which it counts otherwise as
// made, and never as lost. It panics if an option is nil.
func New(opts ...Option) *Metrics {
	o := options{namespace: "teleport", route: func(string) string { return "any" },
		buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5,
			10}}
	option.Apply("prometheus: New", &o, opts)
	m := &Metrics{clientRoute: o.route}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return add(m, prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: o.namespace, Name: name,
			Help: help, ConstLabels: o.labels}, labels))
	}
	counter := func(name, help string) prometheus.Counter {
		return add(m, prometheus.NewCounter(prometheus.CounterOpts{Namespace: o.namespace, Name: name,
			Help: help, ConstLabels: o.labels}))
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return add(m, prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: o.namespace, Name: name,
			Help: help, ConstLabels: o.labels}, labels))
	}
	durations := func(name, help string) *prometheus.HistogramVec {
		return add(m, prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: o.namespace, Name: name,
			Help: help, ConstLabels: o.labels, Buckets: o.buckets, NativeHistogramBucketFactor: 1.1,
			NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour},
			[]string{"route"}))
	}
	m.server = newDirection(
		counters("calls_total", "Calls that came and are over, by kind, route and status.", "kind", "route",
			"status"),
		durations("call_duration_seconds",
			"From when a pull's header was read until its reply was handed over."),
		gauges("calls_running", "Pulls, pushes and streams that have come and are not over.", "kind"))
	m.client = newDirection(
		counters("client_calls_total", "Calls that this side has made and that are over.", "kind", "route",
			"status"),
		durations("client_call_duration_seconds", "From when a pull was made until its reply was decoded."),
		gauges("client_calls_running", "Pulls and streams that this side has made and that are not over.",
			"kind"))
	m.waiting = byKind(gauges("calls_waiting", "Calls that have come and wait for a handler.", "kind"))
	m.inBytes = counters("received_bytes_total", "Bytes of headers and bodies of calls that came.", "kind",
		"route")
	m.outBytes = counters("sent_bytes_total", "Bytes of headers and bodies of replies.", "kind", "route")
	m.limited = counters("limited_total", "Calls that were refused with the status 429.", "kind", "route")
	m.dropped = counter("pushes_dropped_total", "Pushes that were not handled, whatever the reason.")
	m.connects = counter("connections_total", "Connections of sessions, dialled and accepted.")
	m.redials = counter("redials_total", "Connections that sessions got after they had lost one.")
	m.disconnects = counter("disconnects_total", "Connections that sessions have lost, whoever wanted that.")
	m.sessions = prometheus.NewDesc(prometheus.BuildFQName(o.namespace, "", "sessions"), "Live sessions.",
		nil, o.labels)
	m.backlog = prometheus.NewDesc(prometheus.BuildFQName(o.namespace, "", "output_waiting_bytes"),
		"Bytes that wait to be written, of all sessions.", nil, o.labels)
	return m
}

// add has the collector collected with the others.
func add[C prometheus.Collector](m *Metrics, c C) C {
	m.all = append(m.all, c)
	return c
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
	var sessions, backlog float64
	for _, p := range m.peers.All() {
		p.RangeSession(func(s *tp.Session) bool {
			sessions++
			backlog += float64(s.Socket().Backlog())
			return true
		})
	}
	ch <- prometheus.MustNewConstMetric(m.sessions, prometheus.GaugeValue, sessions)
	ch <- prometheus.MustNewConstMetric(m.backlog, prometheus.GaugeValue, backlog)
}

// PostAccept counts a connection.
func (m *Metrics) PostAccept(fore tp.ForeSession) error {
	m.peers.Add(fore.Peer())
	m.connects.Inc()
	return nil
}

// PostConnect counts a connection.
func (m *Metrics) PostConnect(sess *tp.Session) error {
	m.peers.Add(sess.Peer())
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
