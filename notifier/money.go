package notifier

import (
	"strconv"
	"strings"
)

// formatMoney writes an amount of minor units as people read it: the code, then
// the number with grouped thousands and as many decimals as ISO 4217 gives the
// currency, as "EUR 1,234.50" and "JPY 1,235".
func formatMoney(amount int64, currency string) string {
	sign, magnitude := "", uint64(amount)
	if amount < 0 {
		sign, magnitude = "-", -magnitude
	}
	digits := strconv.FormatUint(magnitude, 10)
	decimals := minorDigits(currency)
	if missing := decimals + 1 - len(digits); missing > 0 {
		digits = strings.Repeat("0", missing) + digits
	}
	whole, fraction := digits[:len(digits)-decimals], digits[len(digits)-decimals:]
	var b strings.Builder
	b.WriteString(currency + " " + sign)
	for i, d := range whole {
		if i > 0 && (len(whole)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	if fraction != "" {
		b.WriteString("." + fraction)
	}
	return b.String()
}

// minorDigits is the number of decimals of a currency (ISO 4217, list one, as
// of 2025): two, but for these. golang.org/x/text/currency is no help here: it
// has the CLDR's digits, which are how many people care to write. Those are 0
// for RSD, IQD, LBP and a dozen others whose minor unit is a hundredth or a
// thousandth, and would show their amounts a hundredfold.
func minorDigits(currency string) int {
	switch currency {
	case "BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF":
		return 0
	case "BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND":
		return 3
	case "CLF", "UYW":
		return 4
	}
	return 2
}
