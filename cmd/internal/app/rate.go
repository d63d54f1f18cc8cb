package app

import (
	"errors"
	"strconv"
	"strings"
)

var errRate = errors.New("is not a rate such as 50/s or 90/m")

// ParseRate reads a rate such as 50/s, 90/m or 0.5/s, and returns it per
// second. A bare number is per second.
func ParseRate(s string) (float64, error) {
	number, unit, _ := strings.Cut(s, "/")
	per := map[string]float64{"": 1, "s": 1, "m": 60, "h": 3600}[unit]
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || per == 0 || !(n > 0 && n <= 1e6) {
		return 0, errRate
	}
	return n / per, nil
}
