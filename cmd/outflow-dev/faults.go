package main

import (
	"fmt"
	"strconv"
	"strings"

	"outflow/internal/mailsink"
)

// parseFaults reads what --mail-faults says: kind:count, separated by commas.
func parseFaults(s string) ([]mailsink.Fault, error) {
	if s == "" {
		return nil, nil
	}
	var all []mailsink.Fault
	for one := range strings.SplitSeq(s, ",") {
		kind, count, _ := strings.Cut(strings.TrimSpace(one), ":")
		n, err := strconv.Atoi(count)
		known := kind == mailsink.TempFail || kind == mailsink.PermFail || kind == mailsink.DropAfterData
		if err != nil || n < 1 || !known {
			return nil, fmt.Errorf("%q is not a fault such as %s:3, %s:1 or %s:2", one, mailsink.TempFail, mailsink.PermFail, mailsink.DropAfterData)
		}
		all = append(all, mailsink.Fault{Kind: kind, Count: n})
	}
	return all, nil
}
