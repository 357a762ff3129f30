package plan

import (
	"strings"
	"testing"

	"github.com/henrylee2cn/teleport/bench/systems"
)

func TestSelection(t *testing.T) {
	for _, tc := range []struct {
		list string
		want string
		err  string
	}{
		{"", "all", ""},
		{"c1", "c1", ""},
		{"c128,c1", "c1 c128", ""},
		{"c1|idle", "c1 idle", ""},
		{`c\d+,push.*`, "c1 c16 c128 c1024 push1 push16", ""},
		{"c2", "", `no workload is called "c2"; there are c1,`},
		{"c1,", "", `no workload is called ""`},
		{"c(", "", "missing closing"},
	} {
		got, err := Workloads(tc.list)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q: error %v, want %q", tc.list, err, tc.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tc.list, err)
			continue
		}
		var names []string
		for _, w := range got {
			names = append(names, w.Name)
		}
		if tc.want == "all" && len(got) == len(All()) {
			continue
		}
		if strings.Join(names, " ") != tc.want {
			t.Errorf("%q selects %v, want %s", tc.list, names, tc.want)
		}
	}
	if got, err := Systems("tp,grpc"); err != nil || len(got) != 2 || got[0].Name != "tp" {
		t.Errorf("systems: %v, %v", got, err)
	}
}

func TestEveryWorkloadMakesSense(t *testing.T) {
	seen := make(map[string]bool)
	for _, w := range All() {
		if seen[w.Name] || w.Name == "" || w.About == "" || w.Mode == "" || w.Conns < 1 || w.Callers < 1 {
			t.Errorf("workload %+v: the name is taken, or something is missing", w)
		}
		seen[w.Name] = true
		if len(w.Refs) == 0 || len(w.Compare) == 0 {
			t.Errorf("workload %s is not compared with anything", w.Name)
		}
		fit := 0
		for _, s := range systems.All() {
			if w.Fits(s) {
				fit++
			}
		}
		if fit < 2 {
			t.Errorf("workload %s has %d systems", w.Name, fit)
		}
		for _, ref := range w.Refs {
			s, ok := systems.Find(ref)
			if !ok || !w.Fits(s) {
				t.Errorf("workload %s is compared with %s, which has no part in it", w.Name, ref)
			}
		}
	}
}
