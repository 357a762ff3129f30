package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/henrylee2cn/teleport/bench/harness"
	"github.com/henrylee2cn/teleport/bench/plan"
	"github.com/henrylee2cn/teleport/bench/report"
)

func TestMain(m *testing.M) {
	harness.RunChild() // the processes that a run starts are this test's program again
	os.Exit(m.Run())
}

func TestRunWritesTablesJSONAndSVG(t *testing.T) {
	dir := t.TempDir()
	results, plot := filepath.Join(dir, "results.json"), filepath.Join(dir, "plot.svg")
	var out, progress bytes.Buffer
	err := run(t.Context(), []string{
		"-systems", "tp,floor.", "-work", "c1,c16", "-rounds", "2", "-window", "50ms", "-warmup", "10ms",
		"-o", results, "-svg", plot,
	}, &out, &progress)
	if err != nil {
		t.Fatal(err)
	}
	rep, err := report.ReadFile(results)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Results) != 2 || len(rep.Results[1].Systems) != 3 ||
		len(rep.Results[1].Systems[2].Rounds) != 2 {
		t.Errorf("results: %+v", rep.Results)
	}
	if strings.Contains(progress.String(), "FAILED") || strings.Count(progress.String(), "\n") != 12 {
		t.Errorf("progress:\n%s", &progress)
	}
	svg, err := os.ReadFile(plot)
	if err != nil || !bytes.Contains(svg, []byte("floorB")) {
		t.Errorf("plot: %v, %s", err, svg)
	}

	// What was written gives the same tables and the same plot again.
	var again bytes.Buffer
	if err := run(t.Context(), []string{"-from", results, "-svg", plot}, &again, io.Discard); err != nil {
		t.Fatal(err)
	}
	if again.String() != out.String() {
		t.Errorf("the tables were\n%s\nand are\n%s", &out, &again)
	}
	if svg2, err := os.ReadFile(plot); err != nil || !bytes.Equal(svg, svg2) {
		t.Errorf("the plot is another: %v", err)
	}
}

func TestList(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-list"}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"grpc", "c1024", "idle"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s is not listed", want)
		}
	}
}

func TestWrongArguments(t *testing.T) {
	for _, args := range []string{
		"-systems nothing", "-work nothing", "-rounds 0", "-window -1s", "-warmup -1s", "-from nothing.json",
		"extra", "-no-such-flag",
	} {
		var out bytes.Buffer
		if err := run(t.Context(), strings.Fields(args), &out, io.Discard); err == nil {
			t.Errorf("%s: no error, but\n%s", args, &out)
		}
	}
}

// What -short selects exists.
func TestShort(t *testing.T) {
	if err := run(t.Context(), []string{"-short", "-rounds", "0"}, io.Discard, io.Discard); err == nil ||
		!strings.Contains(err.Error(), "-rounds 0") {
		t.Errorf("a flag beside -short is not taken: %v", err)
	}
	if err := run(t.Context(), []string{"-short", "-work", "nothing"}, io.Discard, io.Discard); err == nil ||
		!strings.Contains(err.Error(), "workload") {
		t.Errorf("the systems of -short: %v", err)
	}
	if _, err := plan.Workloads(shortWork); err != nil {
		t.Error(err)
	}
	if err := run(t.Context(), []string{"-systems", "nothing", "-short"}, io.Discard,
		io.Discard); err == nil || !strings.Contains(err.Error(), "system") {
		t.Errorf("-systems beside -short: %v", err)
	}
}
