// Unpacks what the file carries, and answers greedily with a key-value cache, as the Python teacher does.
const byId = (id) => document.getElementById(id);
const unpack = async (id) => {
  const packed = Uint8Array.from(atob(byId(`pack-${id}`).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};
const library = async (id) => import(URL.createObjectURL(new Blob([await unpack(id)], { type: "text/javascript" })));
const whole = (values) => BigInt64Array.from(values, BigInt);
const WORDS = "(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis)";
const THOUGHT = new RegExp(`^\\s*(?:<${WORDS}>|\\[${WORDS}\\]|◁think▷)[^]*?(?:</${WORDS}>|\\[/${WORDS}\\]|◁/think▷|$)`, "i");

async function load() {
  const about = JSON.parse(new TextDecoder().decode(await unpack("about")));
  const [ort, { Tokenizer }, { Template }] = await Promise.all(["ort", "tokenizers", "jinja"].map(library));
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await unpack("wasm");
  const outside = await Promise.all(about.external.map(async (path, i) => ({ path, data: await unpack(`data${i}`) })));
  const session = await ort.InferenceSession.create(await unpack("model"), { executionProviders: ["wasm"], externalData: outside });
  const tokenizer = new Tokenizer(about.tokenizer, about.tokenizer_config), template = new Template(about.template);
  const past = session.inputNames.filter((name) => name.startsWith("past_key_values."));
  const shapes = Object.fromEntries(session.inputMetadata.map((m) => [m.name, m]));

  const encode = (question) => {
    const messages = [{ role: "user", content: question }];
    const text = template.render({ messages, add_generation_prompt: true, ...about.special });
    return tokenizer.encode(text, { add_special_tokens: false }).ids;
  };
  const empty = (name) => {
    const [, heads, , size] = shapes[name].shape;
    return new ort.Tensor(shapes[name].type, [], [1, heads, 0, typeof size === "number" ? size : about.head_size]);
  };
  const step = async (tokens, cache, read) => {
    const end = read + tokens.length, all = [...Array(end).keys()];
    const feeds = { input_ids: tokens, attention_mask: all.map(() => 1), position_ids: all.slice(read) };
    const given = Object.entries(feeds).filter(([name]) => session.inputNames.includes(name))
      .map(([name, values]) => [name, new ort.Tensor("int64", whole(values), [1, values.length])]);
    const found = await session.run({ ...Object.fromEntries(given), ...cache });
    const width = found.logits.dims[2], last = found.logits.data.subarray((tokens.length - 1) * width);
    let best = 0;
    for (let i = 1; i < width; i++) if (last[i] > last[best]) best = i;
    return [best, Object.fromEntries(past.map((name) => [name, found[name.replace("past_key_values", "present")]]))];
  };
  const answer = async (question) => {
    const prompt = encode(question), written = [];
    if (prompt.length >= about.context) return { text: "That is too long for this model.", tokens: 0 };
    let tokens = prompt, read = 0, cache = Object.fromEntries(past.map((name) => [name, empty(name)])), token;
    const most = Math.min(about.max_new_tokens, about.context - prompt.length);
    while (written.length < most) {
      [token, cache] = await step(tokens, cache, read);
      read += tokens.length;
      if (about.stop.includes(token)) break;
      written.push(token);
      tokens = [token];
    }
    const said = about.lead + tokenizer.decode(written, { skip_special_tokens: true });
    return { text: said.replace(THOUGHT, "").trim(), tokens: written.length };
  };
  return { about, encode, answer };
}

function show({ about, answer }) {
  byId("title").textContent = about.title;
  byId("about").textContent = about.sentence;
  const question = byId("question"), go = byId("go");
  const ask = async () => {
    go.disabled = true;
    document.body.dataset.state = "answering";
    const began = performance.now(), said = await answer(question.value.trim());
    byId("answer").textContent = said.text;
    byId("status").textContent = `${said.tokens} tokens in ${Math.round(performance.now() - began)} ms`;
    document.body.dataset.state = "ready";
    go.disabled = false;
  };
  byId("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  for (const text of about.questions) {
    const button = document.createElement("button"), row = document.createElement("li");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => { question.value = text; ask(); });
    row.append(button);
    byId("examples").append(row);
  }
  byId("status").textContent = "Ready.";
  go.disabled = false;
  document.body.dataset.state = "ready";
}

try {
  const student = await load();
  window.student = student;
  show(student);
} catch (error) {
  byId("status").textContent = `This browser cannot run the model: ${error}`;
  document.body.dataset.state = "failed";
}
