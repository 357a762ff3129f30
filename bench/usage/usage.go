// Package usage tells what this process has used: time of the processors, and memory. What a system does not
// tell is zero, which shows as "not measured".
package usage
