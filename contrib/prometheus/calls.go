package prometheus

import (
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/grown"
	"github.com/henrylee2cn/teleport/packet"
)

// The kinds of calls, as labels.
const pull, push, stream = "pull", "push", "stream"

func kindOf(typ int32) string {
	switch typ {
	case packet.TypePush:
		return push
	case packet.TypeOpen:
		return stream
	}
	return pull
}

// otherCode stands for the codes from 1000 on, and below 100: handlers may make codes of their own, from
// input even.
const otherCode = -1

// status returns the label of a code.
func status(code int32) string {
	if code == otherCode {
		return "other"
	}
	return strconv.Itoa(int(code))
}

// direction has the metrics that there are of calls which come, and of calls which are made.
type direction struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	running map[string]prometheus.Gauge // by kind

	all grown.Map[labels, *series]
}

// labels are what tells the series of calls apart.
type labels struct {
	kind, route string
	code        int32
}

// series are the metrics of calls with the same labels. They are looked up once: by their labels that takes
// longer than all else here. What such calls do not have is nil.
type series struct {
	calls             prometheus.Counter
	inBytes, outBytes prometheus.Counter
	limited           prometheus.Counter
	seconds           prometheus.Observer
}

func newDirection(calls *prometheus.CounterVec, seconds *prometheus.HistogramVec,
	running *prometheus.GaugeVec) *direction {
	return &direction{calls: calls, seconds: seconds, running: byKind(running)}
}

// byKind returns the gauge of each kind.
func byKind(v *prometheus.GaugeVec) map[string]prometheus.Gauge {
	return map[string]prometheus.Gauge{pull: v.WithLabelValues(pull), push: v.WithLabelValues(push),
		stream: v.WithLabelValues(stream)}
}

// of returns the series with the labels, to which add adds if they are new.
func (d *direction) of(l labels, add func(labels, *series)) *series {
	if l.code < 100 || l.code >= 1000 {
		l.code = otherCode
	}
	if found, ok := d.all.Get(l); ok {
		return found
	}
	return d.all.Add(l, func() *series {
		made := &series{calls: d.calls.WithLabelValues(l.kind, l.route, status(l.code))}
		if l.kind == pull {
			made.seconds = d.seconds.WithLabelValues(l.route)
		}
		add(l, made)
		return made
	})
}

// state is what a call that came has under stateKey.
type state struct {
	began   time.Time
	kind    string
	waiting bool
}

type stateKey struct{}

func stateOf(ctx tp.Ctx) *state {
	if v, ok := ctx.Public().Load(stateKey{}); ok {
		return v.(*state)
	}
	return nil
}

// PostReadHeader counts a call that has come.
func (m *Metrics) PostReadHeader(ctx tp.ReadCtx) error {
	typ := ctx.Input().Header.Type
	if typ == packet.TypeReply {
		return nil
	}
	st := &state{began: time.Now(), kind: kindOf(typ), waiting: true}
	ctx.Public().Store(stateKey{}, st)
	m.server.running[st.kind].Inc()
	m.waiting[st.kind].Inc()
	return nil
}

// PreReadBody counts a call that is about to be handled.
func (m *Metrics) PreReadBody(ctx tp.ReadCtx) error {
	if st := stateOf(ctx); st != nil && st.waiting {
		st.waiting = false
		m.waiting[st.kind].Dec()
	}
	return nil
}

// ofServer adds to a series what there is of calls that came alone.
func (m *Metrics) ofServer(l labels, s *series) {
	s.inBytes = m.inBytes.WithLabelValues(l.kind, l.route)
	if l.kind != push {
		s.outBytes = m.outBytes.WithLabelValues(l.kind, l.route)
	}
	if l.code == tp.StatusOverloaded {
		s.limited = m.limited.WithLabelValues(l.kind, l.route)
	}
}

// PostCall counts a call that is over.
func (m *Metrics) PostCall(ctx tp.CallCtx) error {
	in := ctx.Input()
	l := labels{kind: kindOf(in.Header.Type), route: ctx.Route()}
	if l.route == "" {
		l.route = "none"
	}
	l.code, _ = ctx.Status()
	s := m.server.of(l, m.ofServer)
	s.calls.Inc()
	s.inBytes.Add(float64(in.Length))
	if s.outBytes != nil {
		s.outBytes.Add(float64(ctx.Output().Length))
	}
	if s.limited != nil {
		s.limited.Inc()
	}
	if l.kind == push && l.code != tp.StatusOK {
		m.dropped.Inc()
	}
	st := stateOf(ctx)
	if st == nil { // another plugin's PostReadHeader was before this one's, and has refused the call
		return nil
	}
	m.server.running[l.kind].Dec()
	if st.waiting {
		m.waiting[l.kind].Dec()
	}
	if s.seconds != nil {
		s.seconds.Observe(time.Since(st.began).Seconds())
	}
	return nil
}

// PreWritePull counts a pull, or a stream, that is made.
func (m *Metrics) PreWritePull(ctx tp.WriteCtx) error {
	st := &state{began: time.Now(), kind: kindOf(ctx.Output().Header.Type)}
	ctx.Public().Store(stateKey{}, st)
	m.client.running[st.kind].Inc()
	return nil
}

func (m *Metrics) ofClient(labels, *series) {}

// PostPull counts one that is over.
func (m *Metrics) PostPull(ctx tp.PullCallCtx) error {
	h := ctx.Output().Header
	l := labels{kind: kindOf(h.Type), route: m.routeOf(h), code: tp.StatusOK}
	if x := ctx.Failure(); x != nil {
		l.code = x.Code()
	}
	s := m.client.of(l, m.ofClient)
	s.calls.Inc()
	if st := stateOf(ctx); st != nil {
		m.client.running[l.kind].Dec()
		if s.seconds != nil {
			s.seconds.Observe(time.Since(st.began).Seconds())
		}
	}
	return nil
}

// PostWritePush counts a push that was sent.
func (m *Metrics) PostWritePush(ctx tp.WriteCtx) error {
	l := labels{kind: push, route: m.routeOf(ctx.Output().Header), code: tp.StatusOK}
	m.client.of(l, m.ofClient).calls.Inc()
	return nil
}

// routeOf returns the route of what this side calls.
func (m *Metrics) routeOf(h *packet.Header) string {
	path, _, _ := strings.Cut(h.Uri, "?")
	return m.clientRoute(path)
}
