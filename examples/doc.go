// Package examples holds programs that show one thing each; start with
// quickstart. The tests here build and run them all.
package examples
