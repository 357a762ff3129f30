// Package option applies the options of the plugins.
package option

import "fmt"

// Apply calls the options with the target, in their order. It panics, in the name of the caller, if one is
// nil.
func Apply[O ~func(T), T any](caller string, target T, options []O) {
	for i, o := range options {
		if o == nil {
			panic(fmt.Sprintf("%s: option %d of %d is nil.", caller, i+1, len(options)))
		}
		o(target)
	}
}
