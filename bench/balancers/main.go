// Command balancers compares ways to choose one of many servers, in a simulation: a fleet of 20 servers, some
// of them in trouble, and clients that know nothing of each other. It has no clock, so the machine may be
// busy, and the same seed gives the same table.
//
//	go run ./balancers                   # tables in markdown, about two minutes
//	go run ./balancers -svg balancers.svg
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
)

func main() {
	seed := flag.Uint64("seed", 1, "of the random numbers")
	svg := flag.String("svg", "", "the `file` that the picture is written to")
	flag.Parse()
	all := runAll(*seed)
	fmt.Print(overview(all), "\n", table(all))
	if *svg == "" {
		return
	}
	if err := os.WriteFile(*svg, []byte(picture(all)), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runAll simulates every scenario with every setup: results by scenario, then by setup.
func runAll(seed uint64) [][]result {
	all := make([][]result, len(scenarios))
	var running sync.WaitGroup
	places := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i, of := range scenarios {
		all[i] = make([]result, len(setups))
		for k, how := range setups {
			running.Go(func() {
				places <- struct{}{}
				defer func() { <-places }()
				all[i][k] = simulate(of, how, seed)
			})
		}
	}
	running.Wait()
	return all
}
