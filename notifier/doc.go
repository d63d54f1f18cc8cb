// Package notifier mails customers what events ask to tell them. It owns the
// mail templates, the SMTP side, and table mail.
//
// What holds:
//   - Every notification.requested event is mailed at least once. A mail is
//     claimed, sent and marked as sent. It is sent twice only when the
//     connection, or this process, dies between the end of the mail and the
//     mark (RFC 1047): then nobody can know whether the server has it.
//   - Such a duplicate is the same to the byte. Its Message-ID is made of the
//     event's id, so that whoever receives it can tell.
//   - Sending one mail takes at most MailerConfig.Timeout, whatever the server
//     does. A claim's lease is longer than that.
//   - What may go away by itself is tried again (see [Temporary]). A mail that
//     the server refuses for good is parked with its event.
//     What the server wants later comes again after pauses that double, with
//     jitter, up to a bound; mail to other customers goes on meanwhile.
//   - One address gets no more mail than Config.Limit says, however many
//     notifiers there are; what is more waits, in order.
//   - [Notifier.Resend] sends a mail again that was sent, with a Message-ID of
//     its own.
//   - No value of a customer's can start a header or a line of ours, or act in
//     the HTML.
package notifier
