package api

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"outflow/domain"
)

// entityDocs is what the documentation says of a kind of resource.
type entityDocs struct {
	tag      string // "Customers"
	one      string // "customer"
	One      string // "Customer", also the schema's name
	creating string // what creating one means
	changing string // what changing one means
	deleting string // what deleting one means

	sorts   []string      // what lists can be sorted by; the first is the default
	filters []*huma.Param // what lists can be filtered by

	input, change, resource any // examples
	patchOps                any // an example of a JSON Patch

	// What may stand in the way, beyond what all operations have in common.
	createProblems, updateProblems, deleteProblems []domain.Code
}

func (d *entityDocs) create(path string) huma.Operation {
	op := d.operation("create"+d.One, http.MethodPost, path, "Create "+article(d.one), d.creating)
	op.DefaultStatus = http.StatusCreated
	d.takes(&op, d.One+"Input", d.input, typeJSON)
	d.gives(&op, "The "+d.one+" as it was created.")
	op.Responses["201"].Headers["Location"] = header("The path of the new "+d.one+".", path+"/"+exampleID.String())
	return refuses(op, append(writing(true), d.createProblems...)...)
}

func (d *entityDocs) createBatch(path, plural string) huma.Operation {
	op := d.operation("create"+d.tag, http.MethodPost, path, "Create many "+plural,
		fmt.Sprintf("Creates up to %d %s at once: all of them or, when anything is wrong with any of them, none. Each has its own events, as if it had been created alone. "+
			"All problems are told, each with the index of what has it. The body may have 4 MiB.", maxBatch, plural))
	op.DefaultStatus = http.StatusCreated
	d.takes(&op, d.One+"Batch", map[string]any{plural: []any{d.input}}, typeJSON)
	op.Responses["201"] = &huma.Response{Description: "The " + plural + " as they were created, in the order of the request.", Headers: commonHeaders(),
		Content: content(typeJSON, d.One+"BatchResult", batch[any]{[]any{d.resource}})}
	return refuses(op, append(writing(true), d.createProblems...)...)
}

func (d *entityDocs) importAll(path, plural string) huma.Operation {
	op := d.operation("import"+d.tag, http.MethodPost, path, "Import "+plural,
		"Creates "+article(d.one)+" for each line of the body, which is newline-delimited JSON of any length and is served while it arrives. "+
			"Each line is like the body of a request that creates one, of at most 64 KiB, and has the same events; what is wrong with one line doesn't hold up the others. "+
			"The answer has a line for each line with something in it, in the same order: {\"line\": 1, \"id\": ...} or {\"line\": 2, \"problem\": {...}}. "+
			"A client may read it while it sends, or after that. An answer without its end means that the connection broke: what was answered took place, of the rest it is not known. "+
			"Idempotency-Key has no meaning here; an email that is taken tells what was imported before.")
	op.Parameters = append(op.Parameters, inQuery("validate_only",
		"Whether only to look for problems, and change nothing. An email that comes twice in the body is found when the lines are near to each other.",
		&huma.Schema{Type: huma.TypeBoolean, Default: false}))
	line := string(mustJSON(d.input)) + "\n"
	op.RequestBody = &huma.RequestBody{Content: map[string]*huma.MediaType{typeNDJSON: {
		Schema:   characters("Lines, each a "+d.One+"Input; none are fine too.", 0, 0),
		Examples: map[string]*huma.Example{"example": {Summary: "An example", Value: line}},
	}}}
	op.Responses["200"] = &huma.Response{Description: "What became of each line.", Headers: commonHeaders(), Content: map[string]*huma.MediaType{typeNDJSON: {
		Schema:   characters("Lines, each an ImportedLine.", 0, 0),
		Examples: map[string]*huma.Example{"example": {Summary: "An example", Value: string(mustJSON(imported{Line: 1, ID: &exampleCustomer.ID})) + "\n"}},
	}}}
	return refuses(op, domain.CodeInvalid, codeCrossOrigin, codeMediaType)
}

func (d *entityDocs) get(path string) huma.Operation {
	op := d.operation("get"+d.One, http.MethodGet, path, "Get "+article(d.one), "Returns the "+d.one+" as it is now, or as it was at a version or a time.")
	d.past(&op)
	d.gives(&op, "The "+d.one+".")
	op.Responses["304"] = &huma.Response{Description: "It is the one that If-None-Match names.", Headers: op.Responses["200"].Headers}
	return refuses(conditional(op), domain.CodeInvalid, domain.CodeNotFound)
}

func (d *entityDocs) replace(path string) huma.Operation {
	op := d.operation("replace"+d.One, http.MethodPut, path, "Replace "+article(d.one),
		"Replaces what callers decide of the "+d.one+": an optional property that is left out is taken away. "+
			"The body may be the "+d.one+" as GET shows it; its read-only properties are ignored. "+
			"When nothing changes, the version stays and there is no event. "+d.changing)
	d.takes(&op, d.One+"Replacement", d.input, typeJSON)
	d.gives(&op, "The "+d.one+" as it is now.")
	return refuses(conditional(op), append(writing(true), slices.Concat([]domain.Code{domain.CodeNotFound}, d.updateProblems)...)...)
}

func (d *entityDocs) patch(path string) huma.Operation {
	op := d.operation("update"+d.One, http.MethodPatch, path, "Change parts of "+article(d.one),
		"Applies a JSON merge patch (RFC 7396; application/json means the same): what the body leaves out stays, null takes an optional property away, "+
			"objects are merged, arrays are replaced. Read-only properties may be there with the value that they have. "+
			"Or applies a JSON Patch (RFC 6902) to the "+d.one+" as GET shows it, all of it or nothing. "+
			"When nothing changes, the version stays and there is no event. "+d.changing)
	d.takes(&op, d.One+"Patch", d.change, typeMergePatch, typeJSON)
	op.RequestBody.Content[typeJSONPatch] = content(typeJSONPatch, "JSONPatch", d.patchOps)[typeJSONPatch]
	d.gives(&op, "The "+d.one+" as it is now.")
	return refuses(conditional(op), append(append(writing(true), codeMalformedPatch, codePatchConflict), slices.Concat([]domain.Code{domain.CodeNotFound}, d.updateProblems)...)...)
}

func (d *entityDocs) remove(path string) huma.Operation {
	op := d.operation("delete"+d.One, http.MethodDelete, path, "Delete "+article(d.one), d.deleting+" Its events stay readable.")
	op.DefaultStatus = http.StatusNoContent
	op.Responses["204"] = &huma.Response{Description: "It is deleted.", Headers: commonHeaders()}
	return refuses(conditional(op), append(writing(false), slices.Concat([]domain.Code{domain.CodeNotFound}, d.deleteProblems)...)...)
}

func (d *entityDocs) list(path string) huma.Operation {
	op := d.operation("list"+d.tag, http.MethodGet, path, "List "+d.one+"s", "Lists "+d.one+"s, page by page; oldest first unless sort says otherwise. "+
		"Each filter that is given leaves out more. The pages stay the same when others are created meanwhile.")
	d.filtered(&op)
	if d.one != domain.AggregateCustomer {
		op.Parameters = append(op.Parameters, inQuery("customer_id", "Only orders of this customer.", uuidSchema("")))
	}
	d.givesList(&op, d.One+"List", d.resource)
	return refuses(op, domain.CodeInvalid)
}

// listOfCustomer documents a list of what belongs to a customer.
func (d *entityDocs) listOfCustomer(path string) huma.Operation {
	op := d.operation("listCustomer"+d.tag, http.MethodGet, path, "List a customer's "+d.one+"s", "Lists the customer's "+d.one+"s, page by page; oldest first unless sort says otherwise.")
	d.filtered(&op)
	d.givesList(&op, d.One+"List", d.resource)
	return refuses(op, domain.CodeInvalid, domain.CodeNotFound)
}

func (d *entityDocs) history(path string) huma.Operation {
	op := d.operation("list"+d.One+"Events", http.MethodGet, path, "List the events of "+article(d.one),
		"Lists every change of the "+d.one+", oldest first, page by page: the state before and after, when, and on whose behalf. "+
			"The events stay when the "+d.one+" is deleted.")
	d.givesList(&op, "EventList", exampleEvent(d))
	return refuses(op, domain.CodeInvalid, domain.CodeNotFound)
}

func (d *entityDocs) cancel(path string) huma.Operation {
	return d.action("cancel", path, "Cancels a placed or confirmed order, and tells the customer by mail.")
}

func (d *entityDocs) fulfil(path string) huma.Operation {
	return d.action("fulfil", path, "Marks a confirmed order as fulfilled.")
}

func (d *entityDocs) refund(path string) huma.Operation {
	return d.action("refund", path, "Marks a fulfilled order as refunded, in full.")
}

func (d *entityDocs) action(verb, path, description string) huma.Operation {
	op := d.operation(verb+d.One, http.MethodPost, path, strings.ToUpper(verb[:1])+verb[1:]+" "+article(d.one),
		description+" The request has no body, or an empty object.")
	d.gives(&op, "The "+d.one+" as it is now.")
	return refuses(conditional(op), append(writing(true), domain.CodeNotFound, domain.CodeOrderState, domain.CodeWriteConflict)...)
}

// conditional documents the conditions that a request may have.
func conditional(op huma.Operation) huma.Operation {
	match := "Do this only if the resource is at one of these versions, told by their ETags; * takes any. A weak tag is never the one."
	none := "Do this only if the resource is at none of these versions; * is for one that isn't there."
	switch op.Method {
	case http.MethodGet:
		none = "Answer with 304 and without a body if the resource is at one of these versions, told by their ETags; * is for any."
	case http.MethodPut, http.MethodPatch, http.MethodDelete:
		match += " A server may be configured to require it."
	}
	inHeader := func(name, description string) *huma.Param {
		s := pattern("", `^(\*|(W/)?"[!#-~]*"(, ?(W/)?"[!#-~]*")*)$`)
		s.MinLength = new(1)
		return &huma.Param{Name: name, In: "header", Description: description, Schema: s}
	}
	op.Parameters = append(op.Parameters, inHeader("If-Match", match), inHeader("If-None-Match", none))
	return op
}

// filtered documents what a list can be filtered and sorted by.
func (d *entityDocs) filtered(op *huma.Operation) {
	sort := enum("", withReverse(d.sorts)...)
	sort.Default = d.sorts[0]
	op.Parameters = append(op.Parameters, d.filters...)
	op.Parameters = append(op.Parameters,
		inQuery("sort", "What the list is ordered by; with - in front the other way round.", sort),
		inQuery("include_total", "Whether to count how many the whole list has. That takes longer, the more there are.",
			&huma.Schema{Type: huma.TypeBoolean, Default: false}))
}

func healthDocs(id, path, summary, description, status string, problems ...domain.Code) huma.Operation {
	op := operation("Health", id, http.MethodGet, path, summary, description)
	op.Responses["200"] = &huma.Response{Description: "Yes.", Headers: commonHeaders(), Content: content(typeJSON, "Health", health{status})}
	return refuses(op, append(problems, domain.CodeInvalid)...)
}

func (d *entityDocs) operation(id, method, path, summary, description string) huma.Operation {
	return operation(d.tag, id, method, path, summary, description)
}

func operation(tag, id, method, path, summary, description string) huma.Operation {
	op := huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary, Description: strings.TrimSpace(description),
		Tags: []string{tag}, DefaultStatus: http.StatusOK, Responses: map[string]*huma.Response{},
	}
	if strings.Contains(path, "{id}") {
		what := "customer"
		if strings.HasPrefix(path, "/api/orders") {
			what = "order"
		}
		op.Parameters = append(op.Parameters, &huma.Param{Name: "id", In: "path", Required: true,
			Description: "The id of the " + what + ".", Schema: uuidSchema(""), Example: exampleID})
	}
	if takesKey(method, path) {
		op.Parameters = append(op.Parameters, &huma.Param{Name: keyHeader, In: "header", Example: exampleKey,
			Description: "A name of this request, unique among all requests, such as a UUID; bare or in quotes. Sent again within 24 hours, the request isn't carried out again: " +
				"the answer is that of the first time, with " + replayedHeader + ": true. What was refused or failed leaves the key free.",
			Schema: pattern("", fmt.Sprintf(`^([!#-~][ -~]{0,%d}|"([ !#-\[\]-~]|\\["\\]){1,%d}")$`, maxKey-1, maxKey))})
	}
	return op
}

// takes documents the body.
func (d *entityDocs) takes(op *huma.Operation, schema string, example any, types ...string) {
	op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{}}
	for _, t := range types {
		op.RequestBody.Content[t] = content(t, schema, example)[t]
	}
}

// gives documents the answer of an operation on one resource.
func (d *entityDocs) gives(op *huma.Operation, description string) {
	headers := commonHeaders()
	headers["ETag"] = header("The version, in quotes.", `"1"`)
	op.Responses[strconv.Itoa(op.DefaultStatus)] = &huma.Response{Description: description, Headers: headers, Content: content(typeJSON, d.One, d.resource)}
}

func (d *entityDocs) givesList(op *huma.Operation, schema string, item any) {
	op.Parameters = append(op.Parameters,
		&huma.Param{Name: "limit", In: "query", Example: defaultLimit,
			Description: fmt.Sprintf("The most items to return. More than %d counts as %d.", maxLimit, maxLimit),
			Schema:      &huma.Schema{Type: huma.TypeInteger, Minimum: new(1.0), Default: defaultLimit}},
		&huma.Param{Name: "cursor", In: "query",
			Description: "The next_cursor of the page before, with the same sort and filters; without it the list begins at its beginning.",
			Schema:      characters("", 1, 0)})
	headers := commonHeaders()
	headers["Link"] = header("The next page (RFC 8288); absent on the last one.", "<"+op.Path+`?cursor=...>; rel="next"`)
	op.Responses["200"] = &huma.Response{Description: "One page.", Headers: headers,
		Content: content(typeJSON, schema, list[any]{Data: []any{item}})}
}

// writing are the problems that every change can have.
func writing(body bool) []domain.Code {
	codes := []domain.Code{domain.CodeInvalid, codeCrossOrigin, domain.CodeTooLarge}
	if body {
		codes = append(codes, codeMalformed, codeMediaType, codeTooLarge, codeTimeout)
	}
	return codes
}

// refuses documents the problems that an operation can have.
func refuses(op huma.Operation, codes ...domain.Code) huma.Operation {
	codes = append(codes, codeInternal, codeBadRequest, codeHeaderTooLarge)
	if op.Method != http.MethodDelete {
		codes = append(codes, codeNotAcceptable)
	}
	if slices.ContainsFunc(op.Parameters, func(p *huma.Param) bool { return p.Name == "If-Match" }) {
		codes = append(codes, domain.CodeVersionMismatch)
		if op.Method == http.MethodPut || op.Method == http.MethodPatch || op.Method == http.MethodDelete {
			codes = append(codes, codePreconditionRequired)
		}
	}
	if takesKey(op.Method, op.Path) {
		codes = append(codes, domain.CodeInvalid, domain.CodeKeyReused, domain.CodeKeyInFlight)
		headers := op.Responses[strconv.Itoa(op.DefaultStatus)].Headers
		headers[replayedHeader] = header("true when the request took place before, and this is what was answered then.", "true")
	}
	if strings.HasPrefix(op.Path, "/api/") {
		codes = append(codes, domain.CodeUnavailable)
	}
	for i := range problemTypes {
		t := &problemTypes[i]
		if !slices.Contains(codes, t.code) {
			continue
		}
		status := strconv.Itoa(t.status)
		r := op.Responses[status]
		if r == nil {
			r = &huma.Response{Headers: commonHeaders(), Content: map[string]*huma.MediaType{
				problemJSON: {Schema: ref("Problem"), Examples: map[string]*huma.Example{}},
			}}
			op.Responses[status] = r
		}
		if t.status == http.StatusServiceUnavailable {
			r.Headers["Retry-After"] = header("How many seconds to wait.", retryAfter)
		}
		r.Description = strings.TrimPrefix(r.Description+"; "+t.title, "; ")
		r.Content[problemJSON].Examples[t.slug()] = &huma.Example{Summary: t.title, Value: exampleProblem(t, &op)}
	}
	return op
}

func article(noun string) string {
	if strings.ContainsAny(noun[:1], "aeiou") {
		return "an " + noun
	}
	return "a " + noun
}

// content documents a body. The example has a name, because RapiDoc overlooks
// the ones that don't.
func content(mediaType, schema string, example any) map[string]*huma.MediaType {
	return map[string]*huma.MediaType{mediaType: {Schema: ref(schema), Examples: map[string]*huma.Example{
		"example": {Summary: "An example", Value: example},
	}}}
}

func header(description, example string) *huma.Param {
	return &huma.Param{Description: description, Example: example, Schema: &huma.Schema{Type: huma.TypeString}}
}

func commonHeaders() map[string]*huma.Param {
	return map[string]*huma.Param{"X-Request-Id": header("The request's id: the one that it came with, or a new one.", exampleRequestID)}
}
