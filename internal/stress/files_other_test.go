//go:build !unix

package stress

func raiseFiles() int { return 1 << 15 }
