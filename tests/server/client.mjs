// A client in JavaScript with nothing but fetch and WebSocket: node client.mjs URL, the frames as JSON on stdin.
// It prints what it got as JSON: the gains of each frame by JSON, by bytes and by WebSocket.
const base = process.argv[2]
const chunks = []
for await (const chunk of process.stdin) chunks.push(chunk)
const frames = JSON.parse(Buffer.concat(chunks)).map((frame) => new Float32Array(frame))
const path = `${base}/v2/models/denoiser`
const results = { ready: (await fetch(`${base}/v2/health/ready`)).status, metadata: await (await fetch(path)).json() }

const parameters = (id, t) => ({ sequence_id: id, sequence_start: t === 0, sequence_end: t === frames.length - 1 })
const post = async (body, headers) => {
  const answer = await fetch(`${path}/infer`, { method: 'POST', body, headers })
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`)
  return answer
}

results.json = []
for (const [t, frame] of frames.entries()) {
  const input = { name: 'bands', datatype: 'FP32', shape: [1, frame.length], data: Array.from(frame) }
  const answer = await post(JSON.stringify({ inputs: [input], parameters: parameters('json', t) }), {})
  results.json.push((await answer.json()).outputs[0].data)
}

results.bytes = []
for (const [t, frame] of frames.entries()) {
  const input = { name: 'bands', datatype: 'FP32', shape: [1, frame.length], parameters: { binary_data_size: frame.byteLength } }
  const head = new TextEncoder().encode(
    JSON.stringify({ inputs: [input], parameters: { ...parameters(7, t), binary_data_output: true } }),
  )
  const answer = await post(new Blob([head, frame]), { 'Inference-Header-Content-Length': String(head.length) })
  const length = Number(answer.headers.get('Inference-Header-Content-Length'))
  const output = JSON.parse(new TextDecoder().decode((await answer.clone().arrayBuffer()).slice(0, length))).outputs[0]
  const data = (await answer.arrayBuffer()).slice(length, length + output.parameters.binary_data_size)
  results.bytes.push(Array.from(new Float32Array(data)))
}

const refused = await fetch(`${path}/infer`, { method: 'POST', body: '{' })
results.error = { status: refused.status, ...(await refused.json()) }

results.websocket = []
const socket = new WebSocket(`${path.replace('http', 'ws')}/stream`)
socket.binaryType = 'arraybuffer'
results.closed = await new Promise((resolve, reject) => {
  socket.onopen = () => frames.forEach((frame) => socket.send(frame))
  socket.onmessage = ({ data }) => {
    results.websocket.push(Array.from(new Float32Array(data)))
    if (results.websocket.length === frames.length) socket.send(JSON.stringify({ end: true }))
  }
  socket.onerror = () => reject(new Error('the WebSocket failed'))
  socket.onclose = ({ code }) => resolve(code)
})
console.log(JSON.stringify(results))
