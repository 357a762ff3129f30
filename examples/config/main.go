// Config shows a peer whose configuration comes from the program, a file and flags: each of
// them overrides what stands before it.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	tp "github.com/henrylee2cn/teleport"
)

func main() {
	cfg, err := configure(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	go tp.GraceSignal()
	peer := tp.NewPeer(&cfg)
	tp.HandlePull(peer.PullRouter, "/echo", func(_ tp.PullCtx, args *interface{}) (interface{}, tp.Xerror) {
		return *args, nil
	})
	if err := peer.Listen(); err != nil {
		tp.Fatalf("%v", err)
	}
}

// configure makes the configuration of the command line's arguments.
func configure(args []string) (tp.PeerConfig, error) {
	cfg := tp.PeerConfig{ // the program's own defaults
		ListenAddrs:       []string{"127.0.0.1:9090"},
		SlowCometDuration: time.Second,
	}
	flags := flag.NewFlagSet("config", flag.ContinueOnError)
	file := flags.String("config", "", "a `file`, .yaml or .json")
	addr := flags.String("addr", "", "the `address` to listen on, instead of the file's")
	show := flags.Bool("show", false, "print the configuration and exit")
	if err := flags.Parse(args); err != nil {
		return cfg, err
	}
	if *file != "" {
		text, err := os.ReadFile(*file)
		if err != nil {
			return cfg, err
		}
		read := yaml.Unmarshal
		if filepath.Ext(*file) == ".json" {
			read = json.Unmarshal
		}
		if err := read(text, &cfg); err != nil {
			return cfg, fmt.Errorf("%s: %w", *file, err)
		}
	}
	if *addr != "" {
		cfg.ListenAddrs = []string{*addr}
	}
	if *show {
		text, err := yaml.Marshal(cfg)
		if err != nil {
			return cfg, err
		}
		fmt.Print(string(text))
		os.Exit(0)
	}
	return cfg, nil
}
