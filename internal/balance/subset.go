package balance

import (
	"math/bits"
	"slices"
	"strings"
)

// subsetLot is how many clients share one order of the servers. More in a lot spread more evenly; fewer make
// it rarer that two clients that share one server share others, which then all get the calls of one that is
// lost.
const subsetLot = 256

// Subset returns the size servers of ids that a client called self uses: in the order of ids, which are
// unique, and all of them if there are no more. What clients choose does not depend on the order of ids.
//
// The servers stand in a circle, and the client takes those from a place on. The clients of a lot of 256 have
// their places as far apart as they can be, by the binary van der Corput sequence, so each server has as many
// of these clients as any other, give or take one; and each lot has another order of the servers. It is what
// the Google SRE book (chapter 20, 2016) calls deterministic subsetting, with the changes that Ward, Wankadia
// and Guliani ("Reinventing Backend Subsetting at Google", 2022) made for servers that come and go: a place
// is a fraction of the circle, and servers are ordered by their own hashes, so one that comes or goes changes
// one or two of a client's servers.
//
// A client whose name ends in a number, as those of a StatefulSet do, has its place by that. Other names are
// hashed, and the servers then have as different numbers of clients as in a lottery: with 1,000 clients of 20
// servers each, 20 give or take 4.5 (a binomial distribution), where numbered clients have 20 give or take 1.
func Subset(ids []string, self string, size int) []string {
	if size >= len(ids) {
		return slices.Clone(ids)
	}
	if size <= 0 {
		return nil
	}
	number := numberOf(self)
	lot, place := number/subsetLot, uint32(number%subsetLot)
	type server struct {
		hash uint64
		at   int
	}
	circle := make([]server, len(ids))
	for i, id := range ids {
		circle[i] = server{mix(Hash(id) + mix(lot)), i}
	}
	slices.SortFunc(circle, func(a, b server) int {
		switch {
		case a.hash < b.hash:
			return -1
		case a.hash > b.hash:
			return 1
		}
		return strings.Compare(ids[a.at], ids[b.at])
	})
	start := int(uint64(bits.Reverse32(place)) * uint64(len(ids)) >> 32)
	chosen := make([]int, size)
	for i := range chosen {
		chosen[i] = circle[(start+i)%len(ids)].at
	}
	slices.Sort(chosen)
	subset := make([]string, size)
	for i, at := range chosen {
		subset[i] = ids[at]
	}
	return subset
}

// numberOf returns a number for a name. Names that differ only in the number at their end have numbers that
// are as far from each other as those.
func numberOf(name string) uint64 {
	prefix := strings.TrimRight(name, "0123456789")
	n := uint64(0)
	for _, digit := range name[len(prefix):] {
		n = 10*n + uint64(digit-'0')
	}
	// Each prefix begins with a lot.
	return Hash(prefix)/subsetLot*subsetLot + n
}

// Hash returns the hash of an id or a key, the same in every process: FNV-1a with its bits mixed, which is
// quick for short names.
func Hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return mix(h)
}
