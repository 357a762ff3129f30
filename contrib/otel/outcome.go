package otel

import (
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/internal/grown"
)

// outcome is what has the same attributes. Method is empty where it is not known yet, and code 0.
type outcome struct {
	kind   trace.SpanKind
	method string
	code   int32
}

// ended is the outcome of a call that is over. Handlers may make codes of their own, from input even: those
// from 1000 on, and below 100, are one.
func ended(kind trace.SpanKind, method string, code int32) outcome {
	if code < 100 || code >= 1000 {
		code = -1
	}
	return outcome{kind, method, code}
}

// attributes are those of an outcome, as the library takes them. To make them takes longer than all else that
// this package does.
type attributes struct {
	start  []trace.SpanStartOption
	status []attribute.KeyValue
	record []metric.RecordOption
}

// maxKnown is how many outcomes are told apart on each side. A program that puts numbers into the paths that
// it calls has more, and a proxy calls what strangers have chosen: of those that come later the metrics have
// the method "_OTHER".
const maxKnown = 1000

// side is what there is of the calls in one direction.
type side struct {
	seconds metric.Float64Histogram
	all     grown.Map[outcome, *attributes]
}

// of returns the attributes of an outcome.
func (s *side) of(o outcome) *attributes {
	if found, ok := s.all.Get(o); ok {
		return found
	}
	if s.all.Len() >= maxKnown && o.method != other {
		made := o.attributes()
		made.record = s.of(outcome{o.kind, other, o.code}).record
		return made
	}
	return s.all.Add(o, o.attributes)
}

var system = semconv.RPCSystemNameKey.String(System)

// attributes makes them.
func (o outcome) attributes() *attributes {
	all := []attribute.KeyValue{system}
	if o.method != "" {
		all = append(all, semconv.RPCMethodKey.String(o.method))
	}
	a := &attributes{start: []trace.SpanStartOption{trace.WithSpanKind(o.kind), trace.WithAttributes(all...)}}
	if o.code != 0 {
		a.status = statusOf(o.code)
		set := attribute.NewSet(append(all, a.status...)...)
		a.record = []metric.RecordOption{metric.WithAttributeSet(set)}
	}
	return a
}

// statusOf returns the attributes of the code of an outcome.
func statusOf(code int32) []attribute.KeyValue {
	text := other
	if code > 0 {
		text = strconv.Itoa(int(code))
	}
	attrs := []attribute.KeyValue{semconv.RPCResponseStatusCodeKey.String(text)}
	if code != tp.StatusOK {
		attrs = append(attrs, semconv.ErrorTypeKey.String(text))
	}
	return attrs
}
