package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	tp "github.com/henrylee2cn/teleport"
)

func TestFileAndFlags(t *testing.T) {
	cfg, err := configure([]string{"-config", "config.yaml"})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.ListenAddrs[0] != "127.0.0.1:9191" || cfg.DefaultReadTimeout != 3*time.Minute ||
		cfg.SlowCometDuration != time.Second/2 ||
		cfg.MaxBodyBytes != 1<<20 || cfg.Redial.MaxBackoff != 5*time.Second {
		t.Errorf("%+v", cfg)
	}
	cfg, err = configure([]string{"-config", "config.yaml", "-addr", "unix:/tmp/s"})
	if err != nil || cfg.ListenAddrs[0] != "unix:/tmp/s" {
		t.Errorf("%+v %v", cfg, err)
	}
	cfg, err = configure(nil)
	if err != nil || cfg.ListenAddrs[0] != "127.0.0.1:9090" {
		t.Errorf("%+v %v", cfg, err)
	}
}

// What is written in YAML is read as it was.
func TestYAMLBothWays(t *testing.T) {
	cfg, err := configure([]string{"-config", "config.yaml"})
	if err != nil {
		t.Fatal(err)
	}
	cfg.KeepAlive, cfg.UnixMode = -1, 0o600
	text, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var again tp.PeerConfig
	if err := yaml.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	second, err := yaml.Marshal(&again)
	if err != nil || string(second) != string(text) {
		t.Errorf("%v\n%s\n%s", err, text, second)
	}
}

func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"ListenAddrs: []":               "there is no ListenAddrs; it is called listen_addrs",
		"default_read_timeout: 3":       "default_read_timeout: 3 is not what is expected, a duration",
		"max_body_bytes: [1]":           "max_body_bytes: [1] is not what is expected, a size",
		"redial: {speed: 1}":            "there is no redial.speed",
		"unix_mode: 7777":               "UnixMode",
		"listen_addrs: [here]":          "address here: missing port in address",
		"- a list":                      "",
		"print_body: \"yes\"":           "print_body: \"yes\" is not what is expected, true or false",
		"slow_comet_duration: -1m":      "SlowCometDuration: -1m0s is negative",
		"default_body_codec: x":         "DefaultBodyCodec",
		"max_sessions: 1\nmax_sessions": "",
	} {
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := configure([]string{"-config", file})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, args := range [][]string{{"-config", "nowhere.yaml"}, {"-unknown"}} {
		if _, err := configure(args); err == nil {
			t.Error(args)
		}
	}
}
