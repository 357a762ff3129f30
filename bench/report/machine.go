package report

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
)

// Machine is what a run ran on, and with.
type Machine struct {
	OS    string `json:"os"`
	Arch  string `json:"arch"`
	CPU   string `json:"cpu,omitempty"`
	Cores int    `json:"cores"`
	// MaxProcs is how many of the cores each process uses.
	MaxProcs int    `json:"max_procs"`
	Go       string `json:"go"`
	// Modules are the versions of the systems, by path.
	Modules map[string]string `json:"modules,omitempty"`
}

// compared are the modules whose versions matter to the results.
var compared = []string{
	"connectrpc.com/connect",
	"github.com/centrifugal/centrifuge",
	"github.com/containerd/ttrpc",
	"github.com/nats-io/nats-server/v2",
	"github.com/nats-io/nats.go",
	"google.golang.org/grpc",
	"google.golang.org/protobuf",
	"storj.io/drpc",
}

// ThisMachine describes the machine and the program that are running.
func ThisMachine() Machine {
	m := Machine{
		OS:       runtime.GOOS,
		Arch:     runtime.GOARCH,
		CPU:      cpuModel(),
		Cores:    runtime.NumCPU(),
		MaxProcs: runtime.GOMAXPROCS(0),
		Go:       runtime.Version(),
		Modules:  make(map[string]string),
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return m
	}
	for _, dep := range info.Deps {
		for _, path := range compared {
			if dep.Path == path {
				m.Modules[path] = dep.Version
			}
		}
	}
	return m
}

// cpuModel returns what linux calls the CPU, "" elsewhere.
func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// String describes the machine in some lines.
func (m Machine) String() string {
	var b strings.Builder
	cpu := ""
	if m.CPU != "" {
		cpu = ", " + m.CPU
	}
	fmt.Fprintf(&b, "%s/%s, %d cores%s, GOMAXPROCS %d in each process, %s\n", m.OS, m.Arch, m.Cores, cpu,
		m.MaxProcs, m.Go)
	for _, path := range compared {
		if v := m.Modules[path]; v != "" {
			fmt.Fprintf(&b, "%s %s\n", path, v)
		}
	}
	return b.String()
}
