package mailsink

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/emersion/go-smtp"
)

// The kinds of faults.
const (
	TempFail      = "tempfail"        // answer 451: the sender should try again later
	PermFail      = "permfail"        // answer 550: the sender should give up
	DropAfterData = "drop_after_data" // take the mail, and cut the connection instead of answering the final dot
)

// Where a TempFail or PermFail strikes.
const (
	AtData      = "data" // the answer to the final dot
	AtRecipient = "rcpt" // the answer to RCPT TO
)

// Fault makes the sink misbehave for the next Count mails. Faults strike in
// the order in which they were asked for, one per mail.
type Fault struct {
	Kind  string `json:"kind"`
	Count int    `json:"count"`          // how many mails are still to be struck
	At    string `json:"at,omitempty"`   // AtData, the default, or AtRecipient
	To    string `json:"to,omitempty"`   // only mails to this address; "" means any
	Lose  bool   `json:"lose,omitempty"` // with DropAfterData: the mail is not kept
}

// keeps reports whether the mail is in the inbox although the sender wasn't
// told so: the one case in which an honest sender makes a duplicate.
func (f Fault) keeps() bool { return f.Kind == DropAfterData && !f.Lose }

func (f Fault) reply() error {
	if f.Kind == PermFail {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 7, 1}, Message: "Refused, as asked for"}
	}
	return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 7, 1}, Message: "Not now, as asked for"}
}

func (f Fault) validate() error {
	switch {
	case f.Kind != TempFail && f.Kind != PermFail && f.Kind != DropAfterData:
		return fmt.Errorf("kind must be %s, %s or %s", TempFail, PermFail, DropAfterData)
	case f.Count < 1:
		return errors.New("count must be at least 1")
	case f.At != "" && f.At != AtData && f.At != AtRecipient:
		return fmt.Errorf("at must be %s or %s", AtData, AtRecipient)
	case f.At == AtRecipient && f.Kind == DropAfterData:
		return fmt.Errorf("%s can't be at %s", DropAfterData, AtRecipient)
	case f.Lose && f.Kind != DropAfterData:
		return fmt.Errorf("lose goes with %s only", DropAfterData)
	}
	return nil
}

// Fail asks for a fault. It returns an error that says what is wrong with it.
func (s *Sink) Fail(f Fault) error {
	if err := f.validate(); err != nil {
		return err
	}
	if f.At == "" {
		f.At = AtData
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, f)
	s.touch()
	return nil
}

// Faults returns the faults that are still to strike.
func (s *Sink) Faults() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.faults)
}

// ClearFaults forgets the faults that are still to strike.
func (s *Sink) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
	s.touch()
}

// takeFault returns the first fault that strikes here, and uses it up by one.
func (s *Sink) takeFault(at string, to []string) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.faults {
		if f.At != at || f.To != "" && !slices.ContainsFunc(to, func(a string) bool { return strings.EqualFold(a, f.To) }) {
			continue
		}
		if s.faults[i].Count--; s.faults[i].Count == 0 {
			s.faults = slices.Delete(s.faults, i, i+1)
		}
		s.touch()
		return f, true
	}
	return Fault{}, false
}
