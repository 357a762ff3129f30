package main

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// metricsSum is what the pages /metrics of several servers say, taken together.
type metricsSum struct {
	pages int
	calls map[string]float64 // by route and status
	sum   map[string]float64 // by metric and kind of call
	err   error              // of the last page that could not be read
}

// add reads a server's page.
func (s *metricsSum) add(one *Server) {
	families, err := scrape(one.MetricsURL)
	if err != nil {
		s.err = fmt.Errorf("%s: %w", one.MetricsURL, err)
		return
	}
	if s.pages++; s.calls == nil {
		s.calls, s.sum = make(map[string]float64), make(map[string]float64)
	}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			labels := make(map[string]string)
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			value := m.GetCounter().GetValue()
			s.sum[name+labels["kind"]] += value
			if name == "teleport_calls_total" {
				s.calls[labels["route"]+" "+labels["status"]] += value
			}
		}
	}
}

// scrape reads a page as Prometheus does.
func scrape(url string) (map[string]*dto.MetricFamily, error) {
	client := http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	resp, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(resp.Body)
}

// String is a small table.
func (s *metricsSum) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "what %d pages /metrics say, together:\n", s.pages)
	for _, call := range slices.Sorted(maps.Keys(s.calls)) {
		route, status, _ := strings.Cut(call, " ")
		fmt.Fprintf(&b, "  %-14s %s %8.0f\n", route, status, s.calls[call])
	}
	fmt.Fprintf(&b, "  %.0f connections; %.0f pulls from people, %.0f pushes to one or to a room",
		s.sum["teleport_connections_total"], s.sum["teleport_client_calls_totalpull"],
		s.sum["teleport_client_calls_totalpush"])
	if s.err != nil {
		fmt.Fprintf(&b, "\n  one could not be read: %v", s.err)
	}
	return b.String()
}
