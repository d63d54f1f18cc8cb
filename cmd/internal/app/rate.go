package app

import (
	"errors"
	"strconv"
	"strings"
	"time"
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

var errLimit = errors.New("is not a limit such as 20/m, 1/s or 100/h")

// ParseLimit reads a limit such as 20/m: so many in a second (s), minute (m) or
// hour (h). It returns zeros for "".
func ParseLimit(s string) (n int, per time.Duration, err error) {
	if s == "" {
		return 0, 0, nil
	}
	number, unit, _ := strings.Cut(s, "/")
	per = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}[unit]
	n, err = strconv.Atoi(number)
	if err != nil || per == 0 || n < 1 || n > 1e6 {
		return 0, 0, errLimit
	}
	return n, per, nil
}
